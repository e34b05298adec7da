"""An architecture as data: an embedding, an encoder or a decoder or both, a head.

A `Block` names a token mixer and a feed-forward part; a `Stack` repeats a pattern of blocks; an `Architecture` is the
whole. Each part's settings live beside its module (`Attention` in `attention.py`, `MLP` in `feedforward.py`), and a new
mixer is one new file with a dataclass that has the same two methods, `build` and `cost`.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from flax import nnx

from models.attention import Attention
from models.cost import Cost
from models.embedding import Embedding
from models.execution import Execution
from models.experts import Experts
from models.feedforward import MLP
from models.head import Classifier, Head
from models.identity import ADDED
from models.layers import RMS_NORM, Norm
from models.patches import Patches
from models.positions import Positions, RelativeBias


class Part(Protocol):
    """What a mixer or a feed-forward configuration can do."""

    def build(self, width: int, *, depth_scale: float, std: float | None, execution: Execution) -> nnx.Module:
        """The module, its parameters declared; outputs into the residual stream start smaller by `depth_scale`."""

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token on rows of `length` tokens."""


class NormPlacement(Enum):
    """Where the norms of a block are.

    `pre`: before each part, the residual stream untouched. `post`: after each sum (Vaswani et al. 2017). `output`:
    after each part, before the sum (OLMo 2). `sandwich`: before and after each part (Gemma 2).
    """

    PRE = "pre"
    POST = "post"
    OUTPUT = "output"
    SANDWICH = "sandwich"


class Order(Enum):
    """Whether each part of a block sees what the one before has added, or all see the block's input (GPT-J)."""

    SERIES = "series"
    PARALLEL = "parallel"


class Opening(Enum):
    """Whether the norm before a block's mixer is there, or left out where the embedding has one (ModernBERT)."""

    NORMED = "normed"
    BARE = "bare"


class Sharing(Enum):
    """Whether each repeat of a pattern has parameters of its own, or all have the same (Lan et al. 2020)."""

    OWN = "own"
    SHARED = "shared"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A token mixer, maybe attention to a memory, then a feed-forward part, each in a residual branch.

    Attributes:
        mixer: the token mixer.
        feedforward: the feed-forward part.
        cross: attention to the encoder's output, or None.
        norm: norm of each branch.
        placement: where the norms are.
        order: whether branches follow each other.
        dropout: share of each branch's output dropped in training.
        opening: whether the mixer's branch has its norm.
    """

    mixer: Attention
    feedforward: MLP | Experts
    cross: Attention | None = None
    norm: Norm = RMS_NORM
    placement: NormPlacement = NormPlacement.PRE
    order: Order = Order.SERIES
    dropout: float = 0.0
    opening: Opening = field(default=Opening.NORMED, metadata=ADDED)

    def __post_init__(self):
        if self.opening is Opening.BARE and self.placement is not NormPlacement.PRE:
            raise ValueError("block: only a norm before the mixer can be left out")
        if self.order is Order.PARALLEL and self.placement is NormPlacement.POST:
            raise ValueError("block: parallel branches have no sum of their own to normalise; choose another placement")

    @property
    def branches(self) -> int:
        """Number of residual branches."""
        return 2 if self.cross is None else 3

    def cost(self, width: int, length: int, memory: int = 0) -> Cost:
        """Parameters and FLOPs per token on rows of `length` tokens, with `memory` tokens to attend to."""
        norms = self.branches * (2 if self.placement is NormPlacement.SANDWICH else 1)
        norms -= self.opening is Opening.BARE
        cross = self.cross.cross_cost(width, length, memory) if self.cross else Cost()
        parts = self.mixer.cost(width, length) + cross + self.feedforward.cost(width, length)
        return parts + self.norm.cost(width) * norms


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A pattern of blocks, repeated.

    Attributes:
        pattern: the blocks of one repeat, in order.
        repeats: how many times the pattern stands in the stack.
        sharing: whether repeats have parameters of their own.
        relative: relative bias of all scores, or None.
        rest: blocks after the last repeat, the first ones of the pattern once more, so that any depth can be had.
    """

    pattern: tuple[Block, ...]
    repeats: int
    sharing: Sharing = Sharing.OWN
    relative: RelativeBias | None = None
    rest: int = field(default=0, metadata=ADDED)

    def __post_init__(self):
        if self.repeats < 1 or not self.pattern:
            raise ValueError("architecture: a stack needs at least one block and one repeat")
        if not 0 <= self.rest < len(self.pattern):
            raise ValueError(f"architecture: a rest of {self.rest} blocks is not part of a pattern of {self.period}")
        if self.relative and len({(mixer.kv_heads, mixer.heads, mixer.causal) for mixer in self.mixers}) > 1:
            raise ValueError("architecture: a relative bias wants blocks of equal heads and visibility")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.period * self.repeats + self.rest

    @property
    def period(self) -> int:
        """Number of blocks in the pattern."""
        return len(self.pattern)

    @property
    def uses(self) -> tuple[int, ...]:
        """How many times each block of the pattern stands in the stack."""
        return tuple(self.repeats + (index < self.rest) for index in range(self.period))

    @property
    def copies(self) -> tuple[int, ...]:
        """How many times the parameters of each block of the pattern exist."""
        return self.uses if self.sharing is Sharing.OWN else (1,) * self.period

    @property
    def mixers(self) -> tuple[Attention, ...]:
        """The token mixers of the pattern."""
        return tuple(block.mixer for block in self.pattern)

    @property
    def norm(self) -> Norm | None:
        """The norm after the stack: that of the last block, none where blocks end in one."""
        last = self.pattern[self.rest - 1]
        return None if last.placement is NormPlacement.POST else last.norm

    def cost(self, width: int, length: int, memory: int = 0) -> Cost:
        """Parameters and FLOPs per token, the last norm included."""
        blocks = Cost()
        for block, uses, copies in zip(self.pattern, self.uses, self.copies, strict=True):
            blocks += (block.cost(width, length, memory) * copies).times(uses / copies)
        bias = Cost(embedding=self.relative.buckets * self.mixers[0].heads) if self.relative else Cost()
        norm = self.norm.cost(width) if self.norm else Cost()
        return blocks + bias + norm


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model as data: encoder-only, decoder-only, or an encoder whose output the decoder attends to.

    Attributes:
        family: name in the zoo, for tables and figures.
        vocab: vocabulary size; 0 where images are read.
        length: longest row in tokens (the size of learned positions), on either side; places of an image.
        width: size of the residual stream (axis `embed`).
        encoder: the blocks of the encoder, or None.
        decoder: the blocks of the decoder, or None.
        embedding: tokens to vectors; both sides share the table, and have the rest each for itself. Or images to
            vectors.
        head: vectors to logits of tokens, or None.
        classifier: vectors to logits of classes, or None.
        std: deviation of all normal initialisers; None for 1/sqrt(inputs), which keeps activations of one size at
            every width. Outputs into the residual stream start smaller by 1/sqrt(branches) in either case (Radford et
            al. 2019).
    """

    family: str
    vocab: int
    length: int
    width: int
    encoder: Stack | None = None
    decoder: Stack | None = None
    embedding: Embedding | Patches = Embedding()
    head: Head | None = Head()
    classifier: Classifier | None = None
    std: float | None = None

    def __post_init__(self):
        for name in ("vocab", "length", "width"):
            if getattr(self, name) < (0 if self.image and name == "vocab" else 1):
                raise ValueError(f"architecture: {name} is {getattr(self, name)} and must be positive")
        if self.image:
            self._check_image()
        elif self.embedding.positions is Positions.SINUSOIDAL and self.table_size % 2:
            raise ValueError(f"architecture: sinusoidal positions need an even width, not {self.table_size}")
        if not self.stacks:
            raise ValueError("architecture: there is neither an encoder nor a decoder")
        for side, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            crossing = side == "decoder" and self.encoder is not None
            if stack and any((block.cross is not None) != crossing for block in stack.pattern):
                wants = "a decoder beside an encoder attends to it" if crossing else f"the {side} has nothing to"
                raise ValueError(f"architecture: {wants} (the blocks' `cross`)")
        if self.head and self.table_size != self.width and not self.head.transform:
            raise ValueError(
                f"architecture: a head on width {self.width} needs a transform to token vectors of {self.table_size}"
            )

    def _check_image(self) -> None:
        if self.vocab or self.head:
            raise ValueError("architecture: what reads images has no tokens (vocab 0), and no head for them")
        if self.length != self.embedding.places:
            raise ValueError(f"architecture: length is {self.length}, and the image has {self.embedding.places} places")
        if len(self.stacks) > 1:
            raise ValueError("architecture: both sides of an encoder-decoder read tokens, not images")

    @property
    def image(self) -> tuple[int, ...] | None:
        """Height, width and channels of the images that are read; None for tokens."""
        return self.embedding.image if isinstance(self.embedding, Patches) else None

    def places(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """Vectors that each stack reads, from the tokens or pixels that it is given.

        Raises:
            ValueError: if they are too many, or no image.
        """
        if self.image:
            height, width, channels = self.image
            if columns != (height * width * channels,):
                raise ValueError(
                    f"rows of {' and '.join(map(str, columns))} are no images of {height} x {width} x {channels}"
                )
            return (self.length,)
        if max(columns) > self.length:
            raise ValueError(f"rows of {max(columns)} tokens are longer than the architecture's {self.length}")
        return columns

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The encoder and the decoder, those that there are."""
        return tuple(stack for stack in (self.encoder, self.decoder) if stack)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the stacks' patterns."""
        return tuple(block for stack in self.stacks for block in stack.pattern)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention, to itself and to a memory."""
        return tuple(part for block in self.blocks for part in (block.mixer, block.cross) if part)

    @property
    def routed(self) -> bool:
        """Whether any block has experts."""
        return any(isinstance(block.feedforward, Experts) for block in self.blocks)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(stack.depth for stack in self.stacks)

    @property
    def table_size(self) -> int:
        """Entries of a token's vector in the table."""
        return (None if self.image else self.embedding.size) or self.width

    def cost(self, length: int, inputs: int | None = None, *, asked: int | None = None) -> Cost:
        """Parameters, and FLOPs per token on rows of `length` tokens.

        With both sides, rows have `inputs` tokens (`length` of them if not given) and `length` targets, and FLOPs are
        those of a row divided by the tokens of both. The head is used for `asked` tokens of a row, for all if not
        given.
        """
        both = len(self.stacks) == 2
        inputs = (length if inputs is None else inputs) if both else 0
        lengths = (inputs, length) if both else (length,)
        total = Cost(embedding=self.vocab * self.table_size)
        for stack, own in zip(self.stacks, lengths, strict=True):
            side = stack.cost(self.width, own, inputs) + self.embedding.cost(self.length, self.width)
            total += side.times(own / (length + inputs))
        if self.head:
            used = (length if asked is None else asked) / (length + inputs)
            total += self.head.cost(self.vocab, self.width, self.table_size).times(used)
        if self.classifier:
            total += self.classifier.cost(self.width, length).times(length / (length + inputs))
        return total
