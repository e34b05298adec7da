"""GPT-2."""

from typing import Any

from models.config import Architecture
from models.layers import LAYER_NORM
from models.positions import Positions
from models.zoo.base import decoder_only
from models.zoo.registry import family_of, publish

OWN = dict(norm=LAYER_NORM, positions=Positions.LEARNED, biases=True, std=0.02)
"""What GPT-2 and GPT-3 choose."""


@family_of("gpt2", vocab=50_257, length=1_024, **OWN)
def gpt2(**settings: Any) -> Architecture:
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm first, GELU MLP of 4 x width, biases, tied."""
    return decoder_only(**settings)


publish(
    "Radford et al. 2019",
    {
        "gpt2": (gpt2(width=768, depth=12, heads=12), 124_439_808),
        "gpt2-medium": (gpt2(width=1024, depth=24, heads=16), 354_823_168),
        "gpt2-large": (gpt2(width=1280, depth=36, heads=20), 774_030_080),
        "gpt2-xl": (gpt2(width=1600, depth=48, heads=25), 1_557_611_200),
    },
)
