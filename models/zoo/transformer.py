"""The first Transformer."""

from typing import Any

from models.config import Architecture, NormPlacement
from models.feedforward import Activation
from models.positions import Positions
from models.zoo.base import FINE_LAYER_NORM, encoder_decoder
from models.zoo.registry import family_of


@family_of(
    "transformer", vocab=37_000, length=512, norm=FINE_LAYER_NORM, placement=NormPlacement.POST,
    positions=Positions.SINUSOIDAL, biases=True, activation=Activation.RELU,
)  # fmt: skip
def transformer(**settings: Any) -> Architecture:
    """The first Transformer (Vaswani et al. 2017): encoder and decoder, norms after sums, sinusoidal positions, tied.

    Products in attention have biases, which the paper leaves open.
    """
    return encoder_decoder(**settings)
