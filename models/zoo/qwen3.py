"""Qwen 3."""

from typing import Any

from models.config import Architecture
from models.head import Tying
from models.layers import RMS_NORM
from models.zoo.llama import GATED, gated_decoder
from models.zoo.registry import family_of, publish


@family_of("qwen3", vocab=151_936, length=32_768, rotary_base=1e6, qk_norm=RMS_NORM, **GATED)
def qwen3(**settings: Any) -> Architecture:
    """Qwen 3 (Yang et al. 2025): Llama with a norm of each head's queries and keys, and slower rotation."""
    return gated_decoder(**settings)


_SMALL = dict(kv_heads=8, head_dim=128, tying=Tying.TIED)

publish(
    "Yang et al. 2025",
    {
        "qwen3-0.6b": (qwen3(width=1024, depth=28, heads=16, hidden=3_072, **_SMALL), 596_049_920),
        "qwen3-1.7b": (qwen3(width=2048, depth=28, heads=16, hidden=6_144, **_SMALL), 1_720_574_976),
        "qwen3-4b": (qwen3(width=2560, depth=36, heads=32, hidden=9_728, **_SMALL), 4_022_468_096),
        "qwen3-8b": (qwen3(width=4096, depth=36, heads=32, kv_heads=8, hidden=12_288), 8_190_735_360),
    },
)
