"""Predicting tokens that were hidden."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from experiments.objectives.cross_entropy import TokenObjective
from experiments.objectives.example import Example, Sides, by_row, documents
from experiments.objectives.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Masked(TokenObjective):
    """Masked language modelling (Devlin et al. 2019) with other masks at every step (Liu et al. 2019).

    Each ordinary token is chosen with probability `share` and is then to be predicted; what the model reads in its
    place is the mask, a random ordinary token, or the token itself. Documents packed in a row do not see each other.

    Logits are computed for the chosen tokens alone, or as many as `most` says; should more be chosen in a row, which is
    six standard deviations from what is usual, then the last of them stay as they are.

    Attributes:
        vocabulary: what ids mean.
        share: of tokens to predict.
        masked: share of those that read as the mask.
        random: share of those that read as a random token; the rest stays as it is.

    Raises:
        ValueError: for shares that are none, or a vocabulary without a mask.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.ENCODER,)

    vocabulary: Vocabulary
    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"masked: share {self.share:g} of tokens to predict must be above 0 and at most 1")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ValueError(
                f"masked: {self.masked:g} masked and {self.random:g} random of the predicted tokens are not shares of 1"
            )
        _ = self.vocabulary.mask

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        usual = (self.masked, self.random) == (0.8, 0.1)
        kinds = "" if usual else f"-{100 * self.masked:.3g}/{100 * self.random:.3g}"
        return f"masked-{100 * self.share:.3g}%{kinds}"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.vocabulary.size

    def lengths(self, length: int) -> tuple[int, ...]:
        """Every token but the last is read, as by a causal model."""
        return (length,)

    def most(self, length: int) -> int:
        """How many of `length` tokens may be chosen: six standard deviations more than are on average."""
        mean = self.share * length
        return min(length, math.ceil(mean + 6 * math.sqrt(mean * (1 - self.share))))

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"]) -> Example:
        """What the model reads, and what was there."""
        return by_row(self._row, rows[:, :-1], keys)

    def _row(self, tokens: Int[Array, " length"], key: Key[Array, ""]) -> Example:
        read, chosen = self.hide(tokens, key)
        segments, positions = documents(tokens, self.vocabulary.bos)
        return Example(
            tokens=read,
            targets=tokens,
            weights=chosen.astype(jnp.float32),
            segments=segments,
            positions=positions,
            places=self.places(chosen),
        )

    def places(self, chosen: Bool[Array, " length"]) -> Int[Array, " asked"] | None:
        """Numbers of the chosen tokens of a row, and as many others as there are fewer than the most; None for all."""
        most = self.most(len(chosen))
        return jnp.argsort(~chosen, stable=True)[:most] if most < len(chosen) else None

    def hide(
        self, tokens: Int[Array, " length"], key: Key[Array, ""]
    ) -> tuple[Int[Array, " length"], Bool[Array, " length"]]:
        """What is read in place of a row's tokens, and which of them are to be predicted."""
        whether, how, what = jax.random.split(key, 3)
        ids = self.vocabulary
        chosen = ids.ordinary(tokens) & (jax.random.uniform(whether, tokens.shape) < self.share)
        chosen = chosen & (jnp.cumsum(chosen) <= self.most(len(tokens)))
        kind = jax.random.uniform(how, tokens.shape)
        another = jax.random.randint(what, tokens.shape, ids.first, ids.end, tokens.dtype)
        read = jnp.where(kind < self.masked, ids.mask, jnp.where(kind < self.masked + self.random, another, tokens))
        return jnp.where(chosen, read, tokens), chosen
