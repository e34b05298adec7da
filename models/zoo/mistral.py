"""Mistral."""

from typing import Any

from models.config import Architecture
from models.zoo.llama import GATED, gated_decoder
from models.zoo.registry import family_of, publish


@family_of("mistral", vocab=32_000, length=8_192, window=4_096, **GATED)
def mistral(**settings: Any) -> Architecture:
    """Mistral (Jiang et al. 2023): Llama with a sliding window; its 7B shares keys and values by four heads."""
    return gated_decoder(**settings)


publish(
    "Jiang et al. 2023",
    {
        "mistral-7b": (
            mistral(width=4096, depth=32, heads=32, kv_heads=8, hidden=14_336),
            7_241_732_096,
        ),
    },
)
