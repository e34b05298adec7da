"""BART."""

from dataclasses import replace
from typing import Any

from models.config import Architecture, NormPlacement
from models.feedforward import Activation
from models.positions import Positions
from models.zoo.base import FINE_LAYER_NORM, encoder_decoder
from models.zoo.registry import family_of


@family_of(
    "bart", vocab=50_265, length=1_024, norm=FINE_LAYER_NORM, placement=NormPlacement.POST,
    positions=Positions.LEARNED, biases=True, activation=Activation.GELU_EXACT, std=0.02,
)  # fmt: skip
def bart(**settings: Any) -> Architecture:
    """BART (Lewis et al. 2020): the Transformer with learned positions after two unused rows, embedding normed."""
    base = encoder_decoder(**settings)
    return replace(base, embedding=replace(base.embedding, offset=2, norm=base.encoder.pattern[0].norm))
