"""A generator that fills in hidden tokens, and a discriminator that tells which tokens it replaced."""

from dataclasses import dataclass, replace

import jax
from flax import nnx

from models.config import Architecture
from models.cost import Cost
from models.head import Pooling
from models.pair import Pair


@dataclass(frozen=True, kw_only=True)
class Detection(Pair):
    """Two encoders that learn together by replaced-token detection (Clark et al. 2020).

    They share what a token is read as: vectors of tokens, places and kinds, and the norm of their sum. Each widens that
    to its own width. The discriminator is what is kept; the generator is there to make its questions.

    Attributes:
        family: name in the zoo.
        discriminator: tells one thing of each token, and has no head for tokens.
        generator: a masked language model, usually narrower.
    """

    family: str
    discriminator: Architecture
    generator: Architecture

    def __post_init__(self):
        if any(side.encoder is None or side.decoder or side.image for side in self.sides):
            raise ValueError("detection: generator and discriminator are encoders of tokens")
        told = self.discriminator.classifier
        if self.discriminator.head or told is None or (told.classes, told.pooling) != (1, Pooling.NONE):
            raise ValueError("detection: the discriminator says one thing of each token, by a classifier, and no more")
        if self.generator.classifier or not self.generator.head:
            raise ValueError("detection: the generator says tokens, by a head, and no more")
        one, other = ((side.vocab, side.length, side.table_size, _tables(side)) for side in self.sides)
        if one != other:
            raise ValueError("detection: generator and discriminator share an embedding, and theirs differ")

    @property
    def sides(self) -> tuple[Architecture, Architecture]:
        """Both models, the discriminator first."""
        return self.discriminator, self.generator

    @property
    def vocab(self) -> int:
        """Vocabulary size."""
        return self.discriminator.vocab

    @property
    def length(self) -> int:
        """Longest row in tokens."""
        return self.discriminator.length

    def places(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """Vectors that are read of a row; both models read each, which counts once.

        Raises:
            ValueError: if they are too many.
        """
        return self.discriminator.places(columns)

    def cost(self, length: int, *, asked: int | None = None) -> Cost:
        """Parameters of both, those shared once; FLOPs of both per token of rows of `length`.

        The generator says something in place of `asked` tokens of a row, of all if not given.
        """
        size = self.discriminator.table_size
        shared = Cost(embedding=self.vocab * size) + _tables(self.discriminator).cost(self.length, size)
        return self.discriminator.cost(length) + self.generator.cost(length, asked=asked) + shared * -1


def _tables(side: Architecture):
    """The embedding less the product that widens its vectors: what both sides share."""
    return replace(side.embedding, size=None)


class Detector(nnx.Module):
    """The module of a `Detection`, from the modules of both sides."""

    def __init__(self, config: Detection, discriminator: nnx.Module, generator: nnx.Module):
        self.config, self.execution, self.routed = config, discriminator.execution, config.routed
        self.discriminator = discriminator
        self.own = _reading_by(None, generator)

    @property
    def generator(self) -> nnx.Module:
        """The generator whole, with the tables that it shares: an encoder like any other."""
        return _reading_by(self.discriminator, self.own)


def _reading_by(lender: nnx.Module | None, borrower: nnx.Module) -> nnx.Module:
    """The borrower with what the lender reads tokens as in place of its own; with nothing where there is no lender."""
    made = jax.tree.map(lambda leaf: leaf, borrower)  # a new module of the same parameters
    made.table = None if lender is None else lender.table
    for name in ("positions", "types", "norm"):
        if hasattr(made.prelude, name):
            setattr(made.prelude, name, None if lender is None else getattr(lender.prelude, name))
    return made
