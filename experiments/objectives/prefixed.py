"""Predicting the rest of a document whose beginning is seen whole."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from experiments.objectives.cross_entropy import TokenObjective
from experiments.objectives.example import Example, Sides, by_row, documents


@dataclass(frozen=True, kw_only=True)
class Prefixed(TokenObjective):
    """Prefix language modelling (Liu et al. 2018; Raffel et al. 2020) on rows of packed documents.

    Each document is cut at a place drawn evenly from all of its tokens. What is before is seen from everywhere in the
    document and not predicted; what follows is predicted token by token. Documents do not see each other.

    Attributes:
        bos: the token that begins a document.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.DECODER,)

    bos: int = 1

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        return "prefix"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.bos + 1

    def lengths(self, length: int) -> tuple[int, ...]:
        """Every token but the last is read."""
        return (length,)

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"]) -> Example:
        """What the model reads, what is seen from everywhere, and what is predicted."""
        return by_row(self._row, rows, keys)

    def _row(self, row: Int[Array, " length+1"], key: Key[Array, ""]) -> Example:
        tokens, targets = row[:-1], row[1:]
        segments, positions = documents(tokens, self.bos)
        sizes = jnp.zeros(len(row), jnp.int32).at[segments].add(1)
        # The draw of a document is below 1, so that the last token at least is never part of the prefix.
        cuts = jnp.floor(jax.random.uniform(key, sizes.shape) * sizes).astype(jnp.int32)[segments]
        return Example(
            tokens=tokens,
            targets=targets,
            weights=((targets != self.bos) & (positions + 1 >= cuts)).astype(jnp.float32),
            segments=segments,
            positions=positions,
            prefix=positions < cuts,
        )
