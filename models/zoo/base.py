"""The plain architecture that families start from, in its three kinds."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from models.attention import Attention, Visibility
from models.config import Architecture, Block, NormPlacement, Stack
from models.embedding import Embedding, Scale
from models.feedforward import MLP, Activation, Form
from models.head import Head, Tying
from models.layers import LAYER_NORM, RMS_NORM, Norm
from models.positions import Positions, Rotary

FINE_LAYER_NORM = replace(LAYER_NORM, epsilon=1e-5)


def decoder_only(
    *,
    family: str,
    width: int,
    depth: int,
    heads: int,
    vocab: int,
    length: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    hidden: int | None = None,
    norm: Norm = RMS_NORM,
    placement: NormPlacement = NormPlacement.PRE,
    positions: Positions = Positions.ROTARY,
    rotary_base: float = 10_000.0,
    qk_norm: Norm | None = None,
    window: int | None = None,
    score_scale: float | None = None,
    score_cap: float | None = None,
    activation: Activation = Activation.GELU,
    form: Form = Form.PLAIN,
    biases: bool = False,
    tying: Tying = Tying.TIED,
    logit_cap: float | None = None,
    dropout: float = 0.0,
    std: float | None = None,
) -> Architecture:
    """A decoder of equal blocks; `dropout` applies to the embedding, attention weights and residual branches alike.

    Settings are those of the parts, where they are described; `kv_heads`, `head_dim` and `hidden` are by default
    `heads`, `width / heads` and `4 * width`.

    Raises:
        ValueError: for settings that do not fit together.
    """
    if heads < 1:
        raise ValueError(f"{family}: heads is {heads} and must be positive")
    if head_dim is None and width % heads:
        raise ValueError(f"{family}: width {width} is not divisible by {heads} heads; set head_dim, or other heads")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{family}: dropout is {dropout} and must be a share in [0, 1)")
    at_embedding = positions in (Positions.LEARNED, Positions.SINUSOIDAL)
    mixer = Attention(
        heads=heads,
        head_dim=head_dim or width // heads,
        kv_heads=kv_heads or heads,
        positions=Positions.NONE if at_embedding else positions,
        rotary=Rotary(base=rotary_base),
        qk_norm=qk_norm,
        window=window,
        scale=score_scale,
        score_cap=score_cap,
        biases=biases,
        dropout=dropout,
    )
    feedforward = MLP(hidden=hidden or 4 * width, activation=activation, form=form, biases=biases)
    block = Block(mixer=mixer, feedforward=feedforward, norm=norm, placement=placement, dropout=dropout)
    return Architecture(
        family=family,
        vocab=vocab,
        length=length,
        width=width,
        decoder=Stack(pattern=(block,), repeats=depth),
        embedding=Embedding(
            positions=positions if at_embedding else Positions.NONE,
            scale=Scale.ROOT if std is None else Scale.ONE,
            dropout=dropout,
        ),
        head=Head(tying=tying, logit_cap=logit_cap),
        std=std,
    )


# What can be set on a model of any family.
SETTINGS = tuple(name for name in inspect.signature(decoder_only).parameters if name != "family")


def encoder_only(**settings: Any) -> Architecture:
    """The encoder of the same blocks: every place sees those before and after it."""
    decoder = decoder_only(**settings)
    return replace(decoder, encoder=_seeing_both_ways(decoder.decoder), decoder=None)


def encoder_decoder(**settings: Any) -> Architecture:
    """An encoder of the same blocks, and a decoder whose blocks attend to it in between."""
    decoder = decoder_only(**settings)
    encoder = _seeing_both_ways(decoder.decoder)
    (own,), (seeing,) = decoder.decoder.pattern, encoder.pattern
    block = replace(own, cross=replace(seeing.mixer, positions=Positions.NONE))
    return replace(decoder, encoder=encoder, decoder=replace(decoder.decoder, pattern=(block,)))


def by_turns(decoder: Architecture, pattern: tuple[Block, ...]) -> Architecture:
    """The decoder with blocks of a pattern by turns, to its depth; the last turn may be unfinished."""
    depth = decoder.decoder.depth
    pattern = pattern[:depth]
    repeats, rest = divmod(depth, len(pattern) or 1)
    return replace(decoder, decoder=replace(decoder.decoder, pattern=pattern, repeats=repeats, rest=rest))


def with_blocks(stack: Stack, change: Callable[[Block], Block]) -> Stack:
    """The stack with every block changed."""
    return replace(stack, pattern=tuple(change(block) for block in stack.pattern))


def with_mixer(block: Block, **settings: Any) -> Block:
    """The block with other settings of its mixer."""
    return replace(block, mixer=replace(block.mixer, **settings))


def gated_hidden(width: int) -> int:
    """Hidden units of a gated MLP with about as many parameters as a plain one of 4 x width: 8/3 x width, rounded up.

    To a multiple of 256 as the authors of Llama do, which small widths would notice: of 64 below width 1024, of 8
    below 256.
    """
    multiple = 256 if width >= 1024 else 64 if width >= 256 else 8
    return -(-(8 * width // 3) // multiple) * multiple


def _seeing_both_ways(stack: Stack) -> Stack:
    return with_blocks(stack, lambda block: with_mixer(block, visibility=Visibility.BIDIRECTIONAL))
