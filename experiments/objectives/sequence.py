"""One sequence from another: translation and its like."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Key

from experiments.objectives.cross_entropy import pair_losses
from experiments.objectives.example import Losses, PairExample, Sides, late
from experiments.objectives.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence:
    """A target given a source, every token from the true ones before it (teacher forcing).

    A row is a pair: `inputs` columns for the source, the others for the target, which ends in `eos`; each is filled up
    with `pad` behind. The decoder begins with `bos`.

    Attributes:
        vocabulary: what ids mean, in source and target alike.
        inputs: columns of a row that hold the source.
        smoothing: share of each target's probability that training spreads over the vocabulary (Szegedy et al. 2016;
            Vaswani et al. 2017 use 0.1). The held-out loss is the bare cross-entropy.

    Raises:
        ValueError: for a smoothing out of range, no columns, or padding that cannot be told from the end.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.BOTH,)
    likelihood: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False

    vocabulary: Vocabulary
    inputs: int
    smoothing: float = 0.1

    def __post_init__(self):
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"sequence to sequence: smoothing {self.smoothing:g} must be 0 or more and below 1")
        if self.inputs < 1:
            raise ValueError(f"sequence to sequence: {self.inputs} columns hold no source")
        if self.vocabulary.pad in (self.vocabulary.bos, self.vocabulary.eos):
            raise ValueError("sequence to sequence: the vocabulary has no id for padding alone")

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        return "sequence-to-sequence"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.vocabulary.size

    def lengths(self, length: int) -> tuple[int, int]:
        """Tokens of inputs and of targets.

        Raises:
            ValueError: if the row has no column for the target.
        """
        if self.inputs > length:
            raise ValueError(
                f"sequence to sequence: rows of {length + 1} hold no target behind {self.inputs} of source"
            )
        return self.inputs, length + 1 - self.inputs

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"] | None = None) -> PairExample:
        """Source and target; nothing is random."""
        ids, inputs, targets = self.vocabulary, rows[:, : self.inputs], rows[:, self.inputs :]
        return PairExample(
            inputs=inputs,
            input_segments=(inputs != ids.pad).astype(jnp.int32),
            tokens=late(targets, ids.bos),
            targets=targets,
            weights=(targets != ids.pad).astype(jnp.float32),
            segments=(targets != ids.pad).astype(jnp.int32),
        )

    def losses(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"] | None = None,
        *,
        dropout: Key[Array, ""] | None,
    ) -> Losses:
        """Cross-entropy of each target token in nats, smoothed in training; and the weights, 0 for padding."""
        smoothing = 0.0 if dropout is None else self.smoothing
        return pair_losses(model, self.example(rows, keys), dropout=dropout, smoothing=smoothing)
