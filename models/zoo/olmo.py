"""OLMo in two generations."""

from dataclasses import replace
from typing import Any

from models.attention import NormSpan
from models.config import Architecture, NormPlacement
from models.head import Tying
from models.layers import LAYER_NORM, RMS_NORM
from models.zoo.base import with_blocks, with_mixer
from models.zoo.llama import GATED, gated_decoder
from models.zoo.registry import family_of, publish

_FINE_RMS_NORM = replace(RMS_NORM, epsilon=1e-5)


@family_of("olmo", vocab=50_304, length=2_048, norm=replace(LAYER_NORM, epsilon=1e-5, scales=False), **GATED)
def olmo(**settings: Any) -> Architecture:
    """OLMo (Groeneveld et al. 2024): Llama with layer norms that have no parameters."""
    return gated_decoder(**settings)


@family_of(
    "olmo2", vocab=100_352, length=4_096, rotary_base=5e5, norm=_FINE_RMS_NORM, qk_norm=_FINE_RMS_NORM,
    placement=NormPlacement.OUTPUT, **GATED,
)  # fmt: skip
def olmo2(**settings: Any) -> Architecture:
    """OLMo 2 (Walsh et al. 2025): Llama with norms of what branches add, and of all heads' queries and keys at once."""
    base = gated_decoder(**settings)
    stack = with_blocks(base.decoder, lambda block: with_mixer(block, qk_norm_span=NormSpan.HEADS))
    return replace(base, decoder=stack)


publish(
    "Groeneveld et al. 2024",
    {
        "olmo-1b": (olmo(width=2048, depth=16, heads=16, hidden=8_192, tying=Tying.TIED), 1_176_764_416),
        "olmo-7b": (olmo(width=4096, depth=32, heads=32), 6_888_095_744),
    },
)
publish("Walsh et al. 2025", {"olmo2-7b": (olmo2(width=4096, depth=32, heads=32), 7_298_617_344)})
