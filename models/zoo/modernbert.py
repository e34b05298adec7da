"""ModernBERT."""

from dataclasses import replace
from typing import Any

from models.config import Architecture, Opening
from models.feedforward import Activation, Form
from models.head import Transform
from models.positions import Rotary
from models.zoo.base import FINE_LAYER_NORM, encoder_only, with_mixer
from models.zoo.registry import family_of, publish


@family_of(
    "modernbert", vocab=50_368, length=8_192, norm=replace(FINE_LAYER_NORM, bias=False), window=65, form=Form.GATED,
    activation=Activation.GELU_EXACT, rotary_base=160_000.0, std=0.02,
)  # fmt: skip
def modernbert(*, every: int = 3, near_base: float = 10_000.0, **settings: Any) -> Architecture:
    """ModernBERT (Warner et al. 2024): norms first, rotary positions, gated MLPs of 3/2 x width, no biases.

    One block in `every`, from the first on, sees everything; the others see `window` places either way, with rotary
    positions of base `near_base`. The embedding is normalised, and the first block reads it as it is, so blocks are
    not repeats of one pattern but stand in the stack one by one.
    """
    base = encoder_only(**({"hidden": 3 * settings["width"] // 2} | settings))
    near, depth = with_mixer(base.blocks[0], rotary=Rotary(base=near_base)), base.depth
    far = with_mixer(base.blocks[0], window=None)
    first = replace(far, opening=Opening.BARE)
    pattern = (first, *(far if layer % every == 0 else near for layer in range(1, depth)))
    transform = Transform(activation=near.feedforward.activation, norm=near.norm, biases=False)
    return replace(
        base,
        encoder=replace(base.encoder, pattern=pattern, repeats=1),
        embedding=replace(base.embedding, norm=near.norm),
        head=replace(base.head, bias=True, transform=transform),
    )


publish(
    "Warner et al. 2024",
    {
        "modernbert-base": (modernbert(width=768, depth=22, heads=12), 149_655_232),
        "modernbert-large": (modernbert(width=1024, depth=28, heads=16, hidden=2_624), 395_881_664),
    },
)
