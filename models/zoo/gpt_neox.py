"""GPT-NeoX, whose sizes are Pythia's."""

from dataclasses import replace
from typing import Any

from models.config import Architecture, Order
from models.feedforward import Activation
from models.head import Tying
from models.zoo.base import FINE_LAYER_NORM, decoder_only, with_blocks, with_mixer
from models.zoo.registry import family_of, publish


@family_of(
    "gpt-neox", vocab=50_432, length=2_048, norm=FINE_LAYER_NORM, activation=Activation.GELU_EXACT, biases=True,
    tying=Tying.UNTIED,
)  # fmt: skip
def gpt_neox(**settings: Any) -> Architecture:
    """GPT-NeoX (Black et al. 2022), Pythia: branches side by side, a quarter of each head rotary, untied, biases.

    Where a quarter of a head is odd or nothing, the next even number of its entries turns.
    """
    base = decoder_only(**settings)
    mixer = base.decoder.pattern[0].mixer
    turning = replace(mixer.rotary, dims=-(-mixer.head_dim // 8) * 2)
    parallel = lambda block: replace(with_mixer(block, rotary=turning), order=Order.PARALLEL)  # noqa: E731
    return replace(base, decoder=with_blocks(base.decoder, parallel))


_PYTHIA = dict(vocab=50_304)

publish("Black et al. 2022", {"gpt-neox-20b": (gpt_neox(width=6144, depth=44, heads=64), 20_554_567_680)})
publish(
    "Biderman et al. 2023",
    {
        "pythia-70m": (gpt_neox(width=512, depth=6, heads=8, **_PYTHIA), 70_426_624),
        "pythia-160m": (gpt_neox(width=768, depth=12, heads=12, **_PYTHIA), 162_322_944),
        "pythia-410m": (gpt_neox(width=1024, depth=24, heads=16, **_PYTHIA), 405_334_016),
        "pythia-1b": (gpt_neox(width=2048, depth=16, heads=8, **_PYTHIA), 1_011_781_632),
        "pythia-1.4b": (gpt_neox(width=2048, depth=24, heads=16, **_PYTHIA), 1_414_647_808),
        "pythia-2.8b": (gpt_neox(width=2560, depth=32, heads=32, **_PYTHIA), 2_775_208_960),
        "pythia-6.9b": (gpt_neox(width=4096, depth=32, heads=32, vocab=50_432), 6_857_302_016),
        "pythia-12b": (gpt_neox(width=5120, depth=36, heads=40, vocab=50_688), 11_846_072_320),
    },
)
