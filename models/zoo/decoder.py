"""The plain decoder for sweeps of small models."""

from typing import Any

from models.config import Architecture
from models.zoo.base import decoder_only
from models.zoo.registry import family_of


@family_of("decoder")
def decoder(**settings: Any) -> Architecture:
    """The plain decoder for sweeps of small models: rotary positions, RMSNorm, GELU MLP, tied, no biases.

    It differs from `llama` where small models ask for it. Below a million parameters embedding and head dominate, and a
    tied head makes the exact training FLOPs those of 6 x params x tokens plus attention, because every parameter is
    used in exactly one product; with an untied one a share of the parameters, different at every size, does no work.
    The plain MLP of 4 x width has one shape at every width, where 8/3 x width must be rounded, and two large products
    in place of three smaller ones.
    """
    return decoder_only(**settings)
