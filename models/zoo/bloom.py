"""BLOOM."""

from dataclasses import replace
from typing import Any

from models.config import Architecture
from models.positions import Positions
from models.zoo.base import FINE_LAYER_NORM, decoder_only
from models.zoo.registry import family_of, publish


@family_of("bloom", vocab=250_880, length=2_048, norm=FINE_LAYER_NORM, positions=Positions.ALIBI, biases=True, std=0.02)
def bloom(**settings: Any) -> Architecture:
    """BLOOM (Le Scao et al. 2022): GPT-2 with ALiBi in place of learned positions, and a norm of the embedding."""
    base = decoder_only(**settings)
    return replace(base, embedding=replace(base.embedding, norm=base.decoder.norm))


publish(
    "Le Scao et al. 2022",
    {
        "bloom-560m": (bloom(width=1024, depth=24, heads=16), 559_214_592),
        "bloom-1b7": (bloom(width=2048, depth=24, heads=16), 1_722_408_960),
        "bloom-7b1": (bloom(width=4096, depth=30, heads=32), 7_069_016_064),
        "bloom": (bloom(width=14_336, depth=70, heads=112), 176_247_271_424),
    },
)
