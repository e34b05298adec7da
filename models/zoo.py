"""Named architectures: families of any size, and published sizes of them.

A family is a function from sizes to an `Architecture`; a published size is a value made by one. A new architecture is
one more of either, and nothing else in the framework changes.

    zoo.llama(width=512, depth=8, heads=8, vocab=1024, length=256, kv_heads=2)
    zoo.make("llama", width=512, depth=8, heads=8, vocab=1024, length=256, kv_heads=2)   # by name
    zoo.get("gpt2-xl")
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from models.attention import Attention, Visibility
from models.config import Architecture, Block, NormPlacement, Stack
from models.embedding import Embedding, Scale
from models.feedforward import MLP, Activation, Form
from models.head import Head, Transform, Tying
from models.layers import LAYER_NORM, RMS_NORM, Norm
from models.positions import Positions, RelativeBias, Rotary

Family = Callable[..., Architecture]


def decoder(*, width: int, depth: int, heads: int, vocab: int, length: int, **settings: Any) -> Architecture:
    """The plain decoder for sweeps of small models: rotary positions, RMSNorm, GELU MLP, tied, no biases.

    It differs from `llama` where small models ask for it. Below a million parameters embedding and head dominate, and a
    tied head makes the exact training FLOPs those of 6 x params x tokens plus attention, because every parameter is
    used in exactly one product; with an untied one a share of the parameters, different at every size, does no work.
    The plain MLP of 4 x width has one shape at every width, where 8/3 x width must be rounded, and two large products
    in place of three smaller ones.

    Args:
        width: size of the residual stream.
        depth: number of blocks.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    return _architecture("decoder", width=width, depth=depth, heads=heads, vocab=vocab, length=length, **settings)


def gpt2(
    *, width: int, depth: int, heads: int, vocab: int = 50_257, length: int = 1_024, **settings: Any
) -> Architecture:
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm first, GELU MLP of 4 x width, biases, tied, std 0.02.

    The authors trained with dropout 0.1; here it is 0 unless `dropout` says otherwise.

    Args:
        width: size of the residual stream.
        depth: number of blocks.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    own = dict(norm=LAYER_NORM, positions=Positions.LEARNED, biases=True, std=0.02)
    return _architecture("gpt2", width=width, depth=depth, heads=heads, vocab=vocab, length=length, **(own | settings))


def llama(
    *, width: int, depth: int, heads: int, vocab: int = 32_000, length: int = 2_048, **settings: Any
) -> Architecture:
    """Llama (Touvron et al. 2023): rotary positions, RMSNorm first, SwiGLU of about 8/3 x width, untied, no biases.

    Args:
        width: size of the residual stream.
        depth: number of blocks.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists; `kv_heads` makes it the grouped attention of Llama 2 70B and 3.
    """
    own = dict(activation=Activation.SILU, form=Form.GATED, tying=Tying.UNTIED, hidden=gated_hidden(width))
    return _architecture("llama", width=width, depth=depth, heads=heads, vocab=vocab, length=length, **(own | settings))


def bert(
    *, width: int, depth: int, heads: int, vocab: int = 30_522, length: int = 512, **settings: Any
) -> Architecture:
    """BERT (Devlin et al. 2019): an encoder with norms after sums, sentence types, a transform before the tied head.

    The authors trained with dropout 0.1; here it is 0 unless `dropout` says otherwise. There is no classifier of
    sentence pairs: `dataclasses.replace` with `classifier=zoo.POOLER` adds it.

    Args:
        width: size of the residual stream.
        depth: number of blocks.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    return _bert("bert", types=2, width=width, depth=depth, heads=heads, vocab=vocab, length=length, **settings)


def roberta(
    *, width: int, depth: int, heads: int, vocab: int = 50_265, length: int = 512, **settings: Any
) -> Architecture:
    """RoBERTa (Liu et al. 2019): BERT trained longer, with one type, and places that begin after two unused rows.

    Args:
        width: size of the residual stream.
        depth: number of blocks.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    sizes = dict(width=width, depth=depth, heads=heads, vocab=vocab, length=length)
    return _bert("roberta", types=1, offset=2, **sizes, **(dict(norm=_FINE_NORM) | settings))


def transformer(
    *, width: int, depth: int, heads: int, vocab: int = 37_000, length: int = 512, **settings: Any
) -> Architecture:
    """The first Transformer (Vaswani et al. 2017): encoder and decoder, norms after sums, sinusoidal positions, tied.

    Products in attention have biases, which the paper leaves open.

    Args:
        width: size of the residual stream.
        depth: number of blocks on either side.
        heads: query heads.
        vocab: vocabulary size of both languages together.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    own = dict(norm=_FINE_NORM, placement=NormPlacement.POST, positions=Positions.SINUSOIDAL, biases=True)
    own |= dict(width=width, depth=depth, heads=heads, vocab=vocab, length=length, activation=Activation.RELU)
    return _paired(_architecture("transformer", **(own | settings)))


def bart(
    *, width: int, depth: int, heads: int, vocab: int = 50_265, length: int = 1_024, **settings: Any
) -> Architecture:
    """BART (Lewis et al. 2020): the Transformer with learned positions after two unused rows, a norm of the embedding.

    Args:
        width: size of the residual stream.
        depth: number of blocks on either side.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    own = dict(norm=_FINE_NORM, placement=NormPlacement.POST, positions=Positions.LEARNED, biases=True, std=0.02)
    own |= dict(width=width, depth=depth, heads=heads, vocab=vocab, length=length, activation=Activation.GELU_EXACT)
    base = _paired(_architecture("bart", **(own | settings)))
    return replace(base, embedding=replace(base.embedding, offset=2, norm=base.encoder.pattern[0].norm))


def t5(*, width: int, depth: int, heads: int, vocab: int = 32_128, length: int = 512, **settings: Any) -> Architecture:
    """T5 (Raffel et al. 2020): encoder and decoder, RMSNorm first, relative bias, ReLU MLP, tied, no biases.

    Args:
        width: size of the residual stream.
        depth: number of blocks on either side.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    return _t5("t5", width=width, depth=depth, heads=heads, vocab=vocab, length=length, **settings)


def t5_1_1(
    *, width: int, depth: int, heads: int, vocab: int = 32_128, length: int = 512, **settings: Any
) -> Architecture:
    """T5 1.1 (Shazeer 2020; Xue et al. 2021 as mT5): T5 with a gated GELU MLP of about 8/3 x width, untied.

    Args:
        width: size of the residual stream.
        depth: number of blocks on either side.
        heads: query heads.
        vocab: vocabulary size.
        length: longest row in tokens.
        **settings: anything that `SETTINGS` lists.
    """
    own = dict(activation=Activation.GELU, form=Form.GATED, tying=Tying.UNTIED, hidden=gated_hidden(width))
    own |= dict(width=width, depth=depth, heads=heads, vocab=vocab, length=length)
    return _t5("t5-1.1", **(own | settings))


def gated_hidden(width: int) -> int:
    """Hidden units of a gated MLP with about as many parameters as a plain one of 4 x width: 8/3 x width, rounded up.

    To a multiple of 256 as the authors of Llama do, which small widths would notice: of 64 below width 1024, of 8
    below 256.
    """
    multiple = 256 if width >= 1024 else 64 if width >= 256 else 8
    return -(-(8 * width // 3) // multiple) * multiple


def _architecture(
    family: str,
    *,
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
    score_cap: float | None = None,
    activation: Activation = Activation.GELU,
    form: Form = Form.PLAIN,
    biases: bool = False,
    tying: Tying = Tying.TIED,
    logit_cap: float | None = None,
    dropout: float = 0.0,
    std: float | None = None,
) -> Architecture:
    """A decoder of equal blocks; `dropout` applies to the embedding, attention weights and residual branches alike."""
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


_FINE_NORM = replace(LAYER_NORM, epsilon=1e-5)
_BERT_NORM = replace(LAYER_NORM, epsilon=1e-12)


def _bert(family: str, *, types: int, offset: int = 0, **settings: Any) -> Architecture:
    own = dict(norm=_BERT_NORM, placement=NormPlacement.POST, positions=Positions.LEARNED, biases=True, std=0.02)
    base = _encoder(_architecture(family, **(own | dict(activation=Activation.GELU_EXACT) | settings)))
    (block,) = base.encoder.pattern
    transform = Transform(activation=block.feedforward.activation, norm=block.norm)
    return replace(
        base,
        embedding=replace(base.embedding, types=types, offset=offset, norm=block.norm),
        head=replace(base.head, bias=True, transform=transform),
    )


def _t5(family: str, **settings: Any) -> Architecture:
    own = dict(positions=Positions.NONE, activation=Activation.RELU)
    base = _architecture(family, **(own | settings))
    # Scores have no factor, and tables entries of unit size, which the tied head takes back.
    pattern = tuple(replace(block, mixer=replace(block.mixer, scale=1.0)) for block in base.decoder.pattern)
    scale = base.width**-0.5 if base.head.tying is Tying.TIED else 1.0
    return _paired(
        replace(
            base,
            decoder=replace(base.decoder, pattern=pattern, relative=RelativeBias()),
            embedding=replace(base.embedding, scale=Scale.ONE),
            head=replace(base.head, scale=scale),
        )
    )


def _seeing_both_ways(stack: Stack) -> Stack:
    """The stack of an encoder: every place sees those before and after it."""
    pattern = (replace(b, mixer=replace(b.mixer, visibility=Visibility.BIDIRECTIONAL)) for b in stack.pattern)
    return replace(stack, pattern=tuple(pattern))


def _encoder(decoder: Architecture) -> Architecture:
    """The encoder-only model of the same blocks."""
    return replace(decoder, encoder=_seeing_both_ways(decoder.decoder), decoder=None)


def _paired(decoder: Architecture) -> Architecture:
    """An encoder of the same blocks, and a decoder whose blocks attend to it in between."""
    encoder = _seeing_both_ways(decoder.decoder)
    blocks = zip(decoder.decoder.pattern, encoder.pattern, strict=True)
    pattern = (replace(own, cross=replace(seeing.mixer, positions=Positions.NONE)) for own, seeing in blocks)
    return replace(decoder, encoder=encoder, decoder=replace(decoder.decoder, pattern=tuple(pattern)))


# What can be set on a model of any family.
SETTINGS = tuple(name for name in inspect.signature(_architecture).parameters if name != "family")

FAMILIES: dict[str, Family] = {
    "decoder": decoder,
    "gpt2": gpt2,
    "llama": llama,
    "bert": bert,
    "roberta": roberta,
    "transformer": transformer,
    "bart": bart,
    "t5": t5,
    "t5-1.1": t5_1_1,
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published size of a family.

    Attributes:
        architecture: the model.
        params: its parameters as published (counted in the released weights), to check `architecture` against.
        source: who published it.
    """

    architecture: Architecture
    params: int
    source: str


_GPT2 = "Radford et al. 2019"
_LLAMA, _LLAMA2, _LLAMA3 = "Touvron et al. 2023a", "Touvron et al. 2023b", "Grattafiori et al. 2024"
_THREE = dict(vocab=128_256, length=8_192, kv_heads=8, rotary_base=500_000.0)

PUBLISHED: dict[str, Published] = {
    name: Published(architecture=architecture, params=params, source=source)
    for name, architecture, params, source in (
        ("gpt2", gpt2(width=768, depth=12, heads=12), 124_439_808, _GPT2),
        ("gpt2-medium", gpt2(width=1024, depth=24, heads=16), 354_823_168, _GPT2),
        ("gpt2-large", gpt2(width=1280, depth=36, heads=20), 774_030_080, _GPT2),
        ("gpt2-xl", gpt2(width=1600, depth=48, heads=25), 1_557_611_200, _GPT2),
        ("tinyllama-1.1b", llama(width=2048, depth=22, heads=32, kv_heads=4), 1_100_048_384, "Zhang et al. 2024"),
        ("llama-7b", llama(width=4096, depth=32, heads=32), 6_738_415_616, _LLAMA),
        ("llama-13b", llama(width=5120, depth=40, heads=40), 13_015_864_320, _LLAMA),
        ("llama-33b", llama(width=6656, depth=60, heads=52), 32_528_943_616, _LLAMA),
        ("llama-65b", llama(width=8192, depth=80, heads=64), 65_285_660_672, _LLAMA),
        (
            "llama-2-70b",
            llama(width=8192, depth=80, heads=64, kv_heads=8, hidden=28_672, length=4_096),
            68_976_648_192,
            _LLAMA2,
        ),
        (
            "llama-3.2-1b",
            llama(width=2048, depth=16, heads=32, hidden=8_192, tying=Tying.TIED, **_THREE),
            1_235_814_400,
            "Meta, model card of Llama 3.2",
        ),
        ("llama-3-8b", llama(width=4096, depth=32, heads=32, hidden=14_336, **_THREE), 8_030_261_248, _LLAMA3),
        ("llama-3-70b", llama(width=8192, depth=80, heads=64, hidden=28_672, **_THREE), 70_553_706_496, _LLAMA3),
    )
}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: if there is none; the message offers the nearest name.
    """
    if name not in FAMILIES:
        raise ValueError(f"no family of architectures is called '{name}'; {_hint(name, FAMILIES)}")
    return FAMILIES[name]


def make(name: str, **chosen: Any) -> Architecture:
    """A model of the family called `name`: `width`, `depth`, `heads`, `vocab`, `length` and other `SETTINGS`.

    Raises:
        ValueError: for a family or a setting that does not exist (the nearest name is offered), for a missing one, and
            for settings that do not fit together.
    """
    build = family(name)
    for setting in chosen:
        if setting not in SETTINGS:
            raise ValueError(f"{name}: there is no setting '{setting}'; {_hint(setting, SETTINGS)}")
    required = inspect.signature(build).parameters.values()
    missing = [entry.name for entry in required if entry.kind is entry.KEYWORD_ONLY and entry.default is entry.empty]
    if missing := [setting for setting in missing if setting not in chosen]:
        raise ValueError(f"{name}: {', '.join(missing)} must be given")
    return build(**chosen)


def get(name: str) -> Architecture:
    """The published size of that name.

    Raises:
        ValueError: if there is none; the message offers the nearest name, or the sizes of a family named.
    """
    if name not in PUBLISHED:
        sizes = [size for size, entry in PUBLISHED.items() if entry.architecture.family == name]
        hint = f"'{name}' is a family, with sizes {', '.join(sizes)}" if sizes else _hint(name, PUBLISHED | FAMILIES)
        raise ValueError(f"no published architecture is called '{name}'; {hint}")
    return PUBLISHED[name].architecture


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
