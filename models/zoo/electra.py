"""ELECTRA: the generator, which fills in masks, and the discriminator, which tells the tokens that it replaced."""

from dataclasses import replace
from typing import Any

from models.config import Architecture, NormPlacement
from models.feedforward import Activation
from models.head import Classifier, Pooling, Transform
from models.layers import LAYER_NORM
from models.positions import Positions
from models.zoo.bert import masked_encoder
from models.zoo.registry import family_of, publish

_OWN = dict(
    vocab=30_522, length=512, norm=replace(LAYER_NORM, epsilon=1e-12), placement=NormPlacement.POST,
    positions=Positions.LEARNED, biases=True, std=0.02, activation=Activation.GELU_EXACT,
)  # fmt: skip


@family_of("electra", **_OWN)
def electra(*, types: int = 2, size: int | None = None, **settings: Any) -> Architecture:
    """ELECTRA's discriminator (Clark et al. 2020): BERT that tells of each token whether it was replaced.

    `size` is the number of entries of a token's vector where it is not the width.
    """
    base = _sized(types, size, **settings)
    transform = Transform(activation=base.encoder.pattern[0].feedforward.activation)
    return replace(base, head=None, classifier=Classifier(classes=1, pooling=Pooling.NONE, transform=transform))


@family_of("electra-generator", **_OWN)
def electra_generator(*, types: int = 2, size: int | None = None, **settings: Any) -> Architecture:
    """ELECTRA's generator (Clark et al. 2020): a narrow BERT; settings as the discriminator's."""
    return _sized(types, size, **settings)


def _sized(types: int, size: int | None, **settings: Any) -> Architecture:
    base = masked_encoder(types, offset=0, **settings)
    if size in (None, base.width):
        return base
    return replace(base, embedding=replace(base.embedding, size=size))


publish(
    "Clark et al. 2020",
    {
        "electra-small": (electra(width=256, depth=12, heads=4, size=128), 13_549_057),
        "electra-base": (electra(width=768, depth=12, heads=12), 109_483_009),
    },
)
