"""Two models whose vectors are compared, as data."""

from dataclasses import dataclass
from enum import Enum

from models.attention import Attention
from models.config import Architecture, Block, Stack
from models.cost import Cost


class Summary(Enum):
    """Which vector of a tower stands for what it read: the first, or the last that is no padding."""

    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Two models of one stack each, whose vectors are compared (Radford et al. 2021): images or tokens on either side.

    Attributes:
        family: name in the zoo.
        left: the first model, without head and classifier.
        right: the second one.
        size: entries of the vectors that are compared, to which each side is brought by a product.
        summaries: which vector of each side stands for it.
        scale: initial factor of products of vectors, which is learned (as its logarithm).
        bias: initial value that is added to products and learned (Zhai et al. 2023), or None.
    """

    family: str
    left: Architecture
    right: Architecture
    size: int
    summaries: tuple[Summary, ...] = (Summary.FIRST, Summary.LAST)
    scale: float = 1 / 0.07
    bias: float | None = None

    def __post_init__(self):
        if self.size < 1 or self.scale <= 0 or len(self.summaries) != 2:
            raise ValueError("towers: size and scale must be positive, and there are two summaries")
        if any(len(side.stacks) > 1 or side.head or side.classifier for side in self.sides):
            raise ValueError("towers: each side is one stack without a head")

    @property
    def sides(self) -> tuple[Architecture, Architecture]:
        """Both models."""
        return self.left, self.right

    @property
    def vocab(self) -> int:
        """The smaller vocabulary of those that read tokens; 0 if there is none."""
        return min((side.vocab for side in self.sides if not side.image), default=0)

    @property
    def length(self) -> int:
        """Longest row on the right."""
        return self.right.length

    @property
    def width(self) -> int:
        """Size of the wider residual stream."""
        return max(side.width for side in self.sides)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(side.depth for side in self.sides)

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """Both stacks."""
        return self.left.stacks + self.right.stacks

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the stacks' patterns."""
        return self.left.blocks + self.right.blocks

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention."""
        return self.left.attentions + self.right.attentions

    @property
    def routed(self) -> bool:
        """Whether any block has experts."""
        return self.left.routed or self.right.routed

    def places(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """Vectors that each stack reads, from the tokens or pixels that it is given.

        Raises:
            ValueError: if they are too many, or no image.
        """
        left, right = columns
        return self.left.places((left,)) + self.right.places((right,))

    def cost(self, length: int, inputs: int | None = None) -> Cost:
        """Parameters, and FLOPs of a pair divided by the places of both sides.

        `length` is of the right and `inputs` of the left, its own length if not given. Products of vectors with those
        of other pairs, which the batch decides, are not counted.
        """
        lengths = (self.left.length if inputs is None else inputs, length)
        total = Cost(weights=1 if self.bias is None else 2)
        for side, own in zip(self.sides, lengths, strict=True):
            product = side.width * self.size
            share = own / sum(lengths)
            total += side.cost(own).times(share)
            total += Cost(weights=product, matmul_flops=2.0 * product).times(share / own)
        return total
