"""Gemma 2 and 3."""

from dataclasses import replace
from typing import Any

from models.config import Architecture, NormPlacement
from models.embedding import Scale
from models.feedforward import Activation, Form
from models.layers import RMS_NORM
from models.positions import Rotary
from models.zoo.base import by_turns, with_mixer
from models.zoo.llama import gated_decoder
from models.zoo.registry import family_of, publish

_NORM = replace(RMS_NORM, offset=1.0)
_OWN = dict(norm=_NORM, placement=NormPlacement.SANDWICH, activation=Activation.GELU, form=Form.GATED)


@family_of("gemma2", vocab=256_000, length=8_192, window=4_096, score_cap=50.0, logit_cap=30.0, **_OWN)
def gemma2(*, period: int = 2, **settings: Any) -> Architecture:
    """Gemma 2 (Riviere et al. 2024): local and global blocks by turns, norms around branches, soft caps, GEGLU, tied.

    The last of every `period` blocks is global, the others see `window` keys.
    """
    return _gemma(period, rotary_global=None, **settings)


@family_of("gemma3", vocab=262_144, length=32_768, window=512, qk_norm=_NORM, **_OWN)
def gemma3(*, period: int = 6, rotary_global: Rotary = Rotary(base=1e6), **settings: Any) -> Architecture:
    """Gemma 3 (Kamath et al. 2025): five local blocks to a global one that turns slower, norms of queries and keys.

    The last of every `period` blocks is global and turns as `rotary_global` says; the others see `window` keys.
    """
    return _gemma(period, rotary_global=rotary_global, **settings)


def _gemma(period: int, *, rotary_global: Rotary | None, **settings: Any) -> Architecture:
    base = gated_decoder(**settings)
    (local,) = base.decoder.pattern
    everywhere = with_mixer(local, window=None, rotary=rotary_global or local.mixer.rotary)
    base = replace(base, embedding=replace(base.embedding, scale=Scale.ROOT))
    return by_turns(base, (local,) * (period - 1) + (everywhere,))


publish(
    "Riviere et al. 2024",
    {
        "gemma2-2b": (gemma2(width=2304, depth=26, heads=8, kv_heads=4, head_dim=256, hidden=9_216), 2_614_341_888),
        "gemma2-9b": (gemma2(width=3584, depth=42, heads=16, kv_heads=8, head_dim=256, hidden=14_336), 9_241_705_984),
        "gemma2-27b": (
            gemma2(
                width=4608,
                depth=46,
                heads=32,
                kv_heads=16,
                head_dim=128,
                hidden=36_864,
                score_scale=(4608 / 32) ** -0.5,
            ),
            27_227_128_320,
        ),
    },
)
publish(
    "Kamath et al. 2025",
    {
        "gemma3-270m": (gemma3(width=640, depth=18, heads=4, kv_heads=1, head_dim=256, hidden=2_048), 268_098_176),
        "gemma3-1b": (gemma3(width=1152, depth=26, heads=4, kv_heads=1, head_dim=256, hidden=6_912), 999_885_952),
    },
)
