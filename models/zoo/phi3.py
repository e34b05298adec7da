"""Phi-3."""

from dataclasses import replace
from typing import Any

from models.config import Architecture
from models.layers import RMS_NORM
from models.zoo.llama import GATED, gated_decoder
from models.zoo.registry import family_of, publish


@family_of("phi3", vocab=32_064, length=4_096, norm=replace(RMS_NORM, epsilon=1e-5), window=2_047, **GATED)
def phi3(**settings: Any) -> Architecture:
    """Phi-3 (Abdin et al. 2024): the parts of Llama with a sliding window, trained on other text."""
    return gated_decoder(**settings)


publish("Abdin et al. 2024", {"phi3-mini": (phi3(width=3072, depth=32, heads=32), 3_821_079_552)})
