"""Vision Transformers: ViT and DeiT."""

from dataclasses import replace
from typing import Any

from models.config import Architecture
from models.feedforward import Activation
from models.head import Classifier, Pooling
from models.layers import LAYER_NORM
from models.patches import Patches
from models.positions import Positions
from models.zoo.base import encoder_only
from models.zoo.registry import family_of, publish

_OWN = dict(
    vocab=0, length=0, norm=replace(LAYER_NORM, epsilon=1e-12), positions=Positions.LEARNED, biases=True, std=0.02,
    activation=Activation.GELU_EXACT,
)  # fmt: skip


@family_of("vit", **_OWN)
def vit(
    *,
    image: tuple[int, ...] = (224, 224, 3),
    patch: int = 16,
    classes: int = 1_000,
    pooling: Pooling = Pooling.FIRST,
    **settings: Any,
) -> Architecture:
    """ViT (Dosovitskiy et al. 2021): an encoder of squares of pixels, norms first, classes told from one place.

    `image` is height, width and channels, `patch` the side of a square in pixels, `classes` their number. `pooling` of
    the mean has no place for the whole image (Zhai et al. 2022). `vocab` and `length` follow and are not given.
    """
    squares = Patches(image=tuple(image), patch=patch, summaries=int(pooling is Pooling.FIRST))
    return _vit(squares, Classifier(classes=classes, pooling=pooling), **settings)


@family_of("deit", **_OWN)
def deit(
    *, image: tuple[int, ...] = (224, 224, 3), patch: int = 16, classes: int = 1_000, **settings: Any
) -> Architecture:
    """DeiT (Touvron et al. 2021): ViT with a second learned vector, which a teacher would train; settings as ViT's."""
    return _vit(Patches(image=tuple(image), patch=patch, summaries=2), Classifier(classes=classes), **settings)


def _vit(
    squares: Patches, classifier: Classifier, *, family: str, vocab: int, length: int, **settings: Any
) -> Architecture:
    if vocab or length:
        raise ValueError(f"{family}: images have neither vocab nor length; give image, patch and classes")
    base = encoder_only(family=family, vocab=1, length=1, **settings)
    squares = replace(squares, positions=base.embedding.positions, dropout=base.embedding.dropout)
    return replace(base, vocab=0, length=squares.places, embedding=squares, head=None, classifier=classifier)


publish(
    "Dosovitskiy et al. 2021",
    {
        "vit-b/16": (vit(width=768, depth=12, heads=12), 86_567_656),
        "vit-l/16": (vit(width=1024, depth=24, heads=16), 304_326_632),
        "vit-h/14": (vit(width=1280, depth=32, heads=16, patch=14), 632_045_800),
    },
)
publish(
    "Touvron et al. 2021, without the second vector",
    {
        "vit-ti/16": (vit(width=192, depth=12, heads=3), 5_717_416),
        "vit-s/16": (vit(width=384, depth=12, heads=6), 22_050_664),
    },
)
