"""Llama in its generations."""

from typing import Any

from models.config import Architecture
from models.feedforward import Activation, Form
from models.head import Tying
from models.zoo.base import decoder_only, gated_hidden
from models.zoo.registry import family_of, publish

GATED = dict(activation=Activation.SILU, form=Form.GATED, tying=Tying.UNTIED)
"""What Llama and those that follow it choose."""


def gated_decoder(*, width: int, hidden: int | None = None, **settings: Any) -> Architecture:
    """A decoder whose MLP has about 8/3 x width hidden units unless told otherwise."""
    return decoder_only(width=width, hidden=hidden or gated_hidden(width), **settings)


@family_of("llama", vocab=32_000, length=2_048, **GATED)
def llama(**settings: Any) -> Architecture:
    """Llama (Touvron et al. 2023): rotary positions, RMSNorm first, SwiGLU of about 8/3 x width, untied, no biases.

    `kv_heads` makes it the grouped attention of Llama 2 70B and 3.
    """
    return gated_decoder(**settings)


_THREE = dict(vocab=128_256, length=8_192, kv_heads=8, rotary_base=500_000.0)

publish("Zhang et al. 2024", {"tinyllama-1.1b": (llama(width=2048, depth=22, heads=32, kv_heads=4), 1_100_048_384)})
publish(
    "Touvron et al. 2023a",
    {
        "llama-7b": (llama(width=4096, depth=32, heads=32), 6_738_415_616),
        "llama-13b": (llama(width=5120, depth=40, heads=40), 13_015_864_320),
        "llama-33b": (llama(width=6656, depth=60, heads=52), 32_528_943_616),
        "llama-65b": (llama(width=8192, depth=80, heads=64), 65_285_660_672),
    },
)
publish(
    "Touvron et al. 2023b",
    {
        "llama-2-70b": (
            llama(width=8192, depth=80, heads=64, kv_heads=8, hidden=28_672, length=4_096),
            68_976_648_192,
        ),
    },
)
publish(
    "Grattafiori et al. 2024",
    {
        "llama-3-8b": (llama(width=4096, depth=32, heads=32, hidden=14_336, **_THREE), 8_030_261_248),
        "llama-3-70b": (llama(width=8192, depth=80, heads=64, hidden=28_672, **_THREE), 70_553_706_496),
    },
)
publish(
    "Meta, model card of Llama 3.2",
    {
        "llama-3.2-1b": (
            llama(width=2048, depth=16, heads=32, hidden=8_192, tying=Tying.TIED, **_THREE),
            1_235_814_400,
        ),
    },
)
