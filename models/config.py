"""An architecture as data: an embedding, stacks of repeated blocks, a head.

A `Block` names a token mixer and a feed-forward part; a `Stack` repeats a pattern of blocks; an `Architecture` is the
whole. Each part's settings live beside its module (`Attention` in `attention.py`, `MLP` in `feedforward.py`), and a new
mixer is one new file with a dataclass that has the same two methods, `build` and `cost`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from flax import nnx

from models.attention import Attention
from models.cost import Cost
from models.execution import Execution
from models.feedforward import MLP
from models.layers import Norm
from models.positions import Positions


class Part(Protocol):
    """What a mixer or a feed-forward configuration can do."""

    def build(self, width: int, *, depth_scale: float, std: float | None, execution: Execution) -> nnx.Module:
        """The module, its parameters declared; outputs into the residual stream start smaller by `depth_scale`."""

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token on rows of `length` tokens."""


class NormPlacement(Enum):
    """Norm before each part with an untouched residual stream (pre), or after each sum (post, Vaswani et al. 2017)."""

    PRE = "pre"
    POST = "post"


class Tying(Enum):
    """Whether the head is the token embedding transposed (Press and Wolf 2017) or a matrix of its own."""

    TIED = "tied"
    UNTIED = "untied"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A token mixer, then a feed-forward part, each in a residual branch.

    Attributes:
        mixer: the token mixer.
        feedforward: the feed-forward part.
        norm: kind of norm.
        placement: where the norms are.
        dropout: share of each branch's output dropped in training.
    """

    mixer: Attention
    feedforward: MLP
    norm: Norm = Norm.RMS
    placement: NormPlacement = NormPlacement.PRE
    dropout: float = 0.0

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token."""
        return self.mixer.cost(width, length) + self.feedforward.cost(width, length) + self.norm.cost(width) * 2


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A pattern of blocks, repeated.

    Attributes:
        pattern: the blocks of one repeat, in order.
        repeats: how many times the pattern stands in the stack, each with parameters of its own.
    """

    pattern: tuple[Block, ...]
    repeats: int

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.pattern) * self.repeats

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token."""
        return sum((block.cost(width, length) for block in self.pattern), Cost()) * self.repeats


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Tokens to vectors.

    Attributes:
        positions: learned or sinusoidal positions added here; none where order comes from attention.
        dropout: share dropped in training.
    """

    positions: Positions = Positions.NONE
    dropout: float = 0.0

    def __post_init__(self):
        if self.positions in (Positions.ROTARY, Positions.ALIBI):
            raise ValueError(f"embedding: {self.positions.value} positions belong to attention, not to the embedding")


@dataclass(frozen=True, kw_only=True)
class Head:
    """Vectors to logits.

    Attributes:
        tying: whether the head shares the token embedding.
        logit_cap: soft cap of logits, or None.
    """

    tying: Tying = Tying.TIED
    logit_cap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder-only model as data.

    Attributes:
        family: name in the zoo, for tables and figures.
        vocab: vocabulary size.
        length: longest row in tokens (the size of learned positions).
        width: size of the residual stream (axis `embed`).
        stack: the blocks.
        embedding: tokens to vectors.
        head: vectors to logits.
        std: deviation of all normal initialisers; None for 1/sqrt(inputs), which keeps activations of one size at
            every width. Outputs into the residual stream start smaller by 1/sqrt(2 depth) in either case (Radford et
            al. 2019).
    """

    family: str
    vocab: int
    length: int
    width: int
    stack: Stack
    embedding: Embedding = Embedding()
    head: Head = Head()
    std: float | None = None

    def __post_init__(self):
        for name in ("vocab", "length", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"architecture: {name} is {getattr(self, name)} and must be positive")
        if self.embedding.positions is Positions.SINUSOIDAL and self.width % 2:
            raise ValueError(f"architecture: sinusoidal positions need an even width, not {self.width}")
        if self.stack.repeats < 1 or not self.stack.pattern:
            raise ValueError("architecture: a stack needs at least one block and one repeat")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.stack.depth

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the head: that of the last block where norms come first, none where they come after."""
        last = self.stack.pattern[-1]
        return last.norm if last.placement is NormPlacement.PRE else None

    def cost(self, length: int) -> Cost:
        """Parameters, and FLOPs per token on rows of `length` tokens."""
        table = self.vocab * self.width
        positions = self.length * self.width if self.embedding.positions is Positions.LEARNED else 0
        head = table if self.head.tying is Tying.UNTIED else 0
        norm = self.final_norm.cost(self.width) if self.final_norm else Cost()
        ends = Cost(embedding=table + positions + head, matmul_flops=2.0 * table)
        return self.stack.cost(self.width, length) + norm + ends
