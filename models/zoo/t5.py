"""T5 and T5 1.1."""

from dataclasses import replace
from typing import Any

from models.config import Architecture
from models.embedding import Scale
from models.feedforward import Activation, Form
from models.head import Tying
from models.positions import Positions, RelativeBias
from models.zoo.base import encoder_decoder, gated_hidden
from models.zoo.registry import family_of

# Scores have no factor, and tables entries of unit size, which the tied head takes back.
_OWN = dict(vocab=32_128, length=512, positions=Positions.NONE, score_scale=1.0)


@family_of("t5", activation=Activation.RELU, **_OWN)
def t5(**settings: Any) -> Architecture:
    """T5 (Raffel et al. 2020): encoder and decoder, RMSNorm first, relative bias, ReLU MLP, tied, no biases."""
    return _t5(**settings)


@family_of("t5-1.1", activation=Activation.GELU, form=Form.GATED, tying=Tying.UNTIED, **_OWN)
def t5_1_1(*, width: int, hidden: int | None = None, **settings: Any) -> Architecture:
    """T5 1.1 (Shazeer 2020; Xue et al. 2021 as mT5): T5 with a gated GELU MLP of about 8/3 x width, untied."""
    return _t5(width=width, hidden=hidden or gated_hidden(width), **settings)


def _t5(**settings: Any) -> Architecture:
    base, relative = encoder_decoder(**settings), RelativeBias()
    return replace(
        base,
        encoder=replace(base.encoder, relative=relative),
        decoder=replace(base.decoder, relative=relative),
        embedding=replace(base.embedding, scale=Scale.ONE),
        head=replace(base.head, scale=base.width**-0.5 if base.head.tying is Tying.TIED else 1.0),
    )
