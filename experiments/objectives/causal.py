"""Predicting the next token."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from experiments.objectives.cross_entropy import TokenObjective
from experiments.objectives.example import Example, Sides, documents


@dataclass(frozen=True, kw_only=True)
class Causal(TokenObjective):
    """Next-token prediction on rows of packed documents.

    A document begins with the token `bos`. Attention does not cross into another document, positions begin anew with
    each, and the first token of a document is not predicted from the one before it: packed documents train exactly as
    separate ones.

    Attributes:
        bos: the token that begins a document.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.DECODER,)
    likelihood: ClassVar[bool] = True

    bos: int = 1

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        return "causal"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.bos + 1

    def lengths(self, length: int) -> tuple[int, ...]:
        """Every token but the last is read."""
        return (length,)

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"] | None = None) -> Example:
        """Inputs, targets, and where documents begin; nothing is random."""
        tokens, targets = rows[:, :-1], rows[:, 1:]
        segments, positions = documents(tokens, self.bos)
        return Example(
            tokens=tokens,
            targets=targets,
            weights=(targets != self.bos).astype(jnp.float32),
            segments=segments,
            positions=positions,
        )
