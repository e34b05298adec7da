"""Telling the class of a sequence."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Key

from experiments.objectives.example import Losses, Sides
from experiments.objectives.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One class for each row, which holds the class in its first column and the sequence behind, filled up with `pad`.

    Attributes:
        vocabulary: what ids of the sequence mean.
        classes: how many there are, numbered from 0.
        smoothing: share of the class's probability that training spreads over all (Szegedy et al. 2016). The held-out
            loss is the bare cross-entropy.

    Raises:
        ValueError: for fewer than two classes, or a smoothing out of range.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.ENCODER, Sides.DECODER)
    likelihood: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False

    vocabulary: Vocabulary
    classes: int
    smoothing: float = 0.0

    def __post_init__(self):
        if self.classes < 2:
            raise ValueError(f"classification: {self.classes} classes leave nothing to tell, 2 are needed")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"classification: smoothing {self.smoothing:g} must be 0 or more and below 1")

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        return f"classification-{self.classes}"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.vocabulary.size

    def lengths(self, length: int) -> tuple[int, ...]:
        """All columns but that of the class are read."""
        return (length,)

    def losses(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"] | None = None,
        *,
        dropout: Key[Array, ""] | None,
    ) -> Losses:
        """Cross-entropy of each row's class in nats, smoothed in training; weights are 1.

        Raises:
            ValueError: if the model tells other classes, or one of each place.
        """
        classes, tokens = rows[:, :1], rows[:, 1:]
        real = (tokens != self.vocabulary.pad).astype(jnp.int32)
        hidden = model(tokens, segments=real, positions=None, key=dropout)
        logits = model.classes(hidden, real)
        if logits.shape[1:] != (1, self.classes):
            raise ValueError(
                f"classification: the model tells {logits.shape[2]} classes at {logits.shape[1]} places of a row, and "
                f"{self.classes} at one place are asked"
            )
        smoothing = 0.0 if dropout is None else self.smoothing
        numbers = jax.lax.broadcasted_iota(classes.dtype, (1, 1, self.classes), 2)
        chosen = jnp.where(numbers == classes[..., None], logits, 0.0).sum(axis=-1)
        wanted = (1 - smoothing) * chosen + smoothing * logits.mean(axis=-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - wanted
        return losses, jnp.ones_like(losses)
