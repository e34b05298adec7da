"""Restoring a text that was damaged: BART's noises, alone or one after another (Lewis et al. 2020)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from experiments.objectives.cross_entropy import TokenObjective
from experiments.objectives.example import PairExample, Sides, by_row, late
from experiments.objectives.vocabulary import Vocabulary

Damaged = tuple[Int[Array, " length"], Int[Array, ""]]
"""A buffer of tokens, and how many of them there are; what lies behind is padding."""


@dataclass(frozen=True, kw_only=True)
class Infilling:
    """Spans of Poisson length are replaced by one mask each; where a span is empty, a mask is put in.

    Spans are drawn until a share of the tokens is used up, and the last is cut to measure (or stretched, where as many
    spans as tokens have been drawn and some are left, which short spans alone bring about). They stand at places drawn
    without repetition among those before, between and behind the tokens that are left, so no two masks are neighbours.

    Attributes:
        share: of the tokens that spans take, at most half.
        span: mean length of a span before it is cut.
    """

    share: float = 0.3
    span: float = 3.0

    def __post_init__(self):
        if not 0 < self.share <= 0.5 or self.span < 1:
            raise ValueError(
                f"infilling: share {self.share:g} must be above 0 and at most 0.5, mean span {self.span:g} at least 1"
            )

    @property
    def label(self) -> str:
        """Its part of the objective's label."""
        return f"infilling-{100 * self.share:.3g}%-of-{self.span:.3g}"

    def damage(
        self, tokens: Int[Array, " length"], count: Int[Array, ""], key: Key[Array, ""], ids: Vocabulary
    ) -> Damaged:
        """The tokens with masks for spans; never more than there were."""
        length = len(tokens)
        sizes_key, places_key = jax.random.split(key)
        budget = jnp.floor(self.share * count).astype(jnp.int32)
        # No more spans than they take tokens: so the text does not grow by the masks of empty ones.
        draws = jax.random.uniform(sizes_key, (max(1, math.floor(self.share * length)),))
        sizes = jnp.searchsorted(_poisson(self.span, length), draws, side="right").astype(jnp.int32)
        before = jnp.cumsum(sizes) - sizes
        number = jnp.arange(len(sizes))
        used = (before < budget) & (number < budget)
        sizes = jnp.where(number == budget - 1, budget, sizes)
        sizes = jnp.where(used, jnp.minimum(sizes, budget - before), 0)
        left = count - sizes.sum()

        # Gap g lies before the g-th token that is left; the span drawn j-th goes to the gap of j-th smallest draw.
        gaps = jnp.arange(length + 1)
        places = jax.random.uniform(places_key, (length + 1,))
        chosen = jnp.argsort(jnp.where(gaps <= left, places, 2.0))[: len(sizes)]
        chosen = jnp.where(used, chosen, length + 1)
        size = jnp.zeros(length + 1, jnp.int32).at[chosen].set(sizes, mode="drop")
        has = jnp.zeros(length + 1, jnp.int32).at[chosen].set(1, mode="drop")

        token = jnp.arange(length)
        origins = jnp.minimum(token + jnp.cumsum(size)[:-1], length - 1)
        spans = jnp.cumsum(has)
        out = jnp.full(length, ids.pad, tokens.dtype)
        out = out.at[jnp.where(token < left, token + spans[:-1], length)].set(tokens[origins], mode="drop")
        out = out.at[jnp.where(has == 1, gaps + spans - 1, length)].set(ids.mask, mode="drop")
        return out, left + has.sum()


def _poisson(mean: float, most: int) -> np.ndarray:
    """Probabilities that a Poisson variable is at most 0, 1, ..., `most`; the last is made 1."""
    numbers = np.arange(most + 1)
    factorials = np.asarray([math.lgamma(number + 1) for number in numbers])
    total = np.cumsum(np.exp(numbers * math.log(mean) - mean - factorials))
    total[-1] = 1.0
    return total.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """Each token is deleted with a probability; the model must also find out where.

    Attributes:
        share: the probability.
    """

    share: float = 0.15

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"deletion: share {self.share:g} must be above 0 and below 1")

    @property
    def label(self) -> str:
        """Its part of the objective's label."""
        return f"deletion-{100 * self.share:.3g}%"

    def damage(
        self, tokens: Int[Array, " length"], count: Int[Array, ""], key: Key[Array, ""], ids: Vocabulary
    ) -> Damaged:
        """The tokens that are left."""
        length = len(tokens)
        kept = (jax.random.uniform(key, (length,)) >= self.share) & (jnp.arange(length) < count)
        places = jnp.where(kept, jnp.cumsum(kept) - 1, length)
        return jnp.full(length, ids.pad, tokens.dtype).at[places].set(tokens, mode="drop"), kept.sum()


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """The sentences are put in random order.

    Attributes:
        ends: tokens that end a sentence; the end of a document does, too.
    """

    ends: tuple[int, ...]

    @property
    def label(self) -> str:
        """Its part of the objective's label."""
        return "permutation"

    def damage(
        self, tokens: Int[Array, " length"], count: Int[Array, ""], key: Key[Array, ""], ids: Vocabulary
    ) -> Damaged:
        """The sentences, each with its end, in another order; what follows the last end is a sentence."""
        length = len(tokens)
        end = jnp.isin(tokens, jnp.asarray((ids.eos, *self.ends)))
        sentence = jnp.cumsum(end) - end
        draws = jax.random.uniform(key, (length,))[sentence]
        return tokens[jnp.argsort(jnp.where(jnp.arange(length) < count, draws, 2.0))], count


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """The text begins at a random token, and what was before comes behind; the model must find the beginning."""

    @property
    def label(self) -> str:
        """Its part of the objective's label."""
        return "rotation"

    def damage(
        self, tokens: Int[Array, " length"], count: Int[Array, ""], key: Key[Array, ""], ids: Vocabulary
    ) -> Damaged:
        """The tokens, rotated."""
        start = jax.random.randint(key, (), 0, jnp.maximum(count, 1))
        places = jnp.arange(len(tokens))
        return tokens[jnp.where(places < count, (places + start) % jnp.maximum(count, 1), places)], count


@dataclass(frozen=True, kw_only=True)
class Denoising(TokenObjective):
    """A damaged text is read and the whole text predicted. A row is one sequence, whatever documents it holds.

    Attributes:
        vocabulary: what ids mean.
        noises: what is done to the text, one after another.

    Raises:
        ValueError: if nothing is done, or the vocabulary has no mask where one is needed.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.BOTH,)

    vocabulary: Vocabulary
    noises: tuple[Infilling | Deletion | Permutation | Rotation, ...] = (Infilling(),)

    def __post_init__(self):
        if not self.noises:
            raise ValueError("denoising: give at least one noise")
        if any(isinstance(noise, Infilling) for noise in self.noises):
            _ = self.vocabulary.mask

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        return "denoising-" + "+".join(noise.label for noise in self.noises)

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.vocabulary.size

    def lengths(self, length: int) -> tuple[int, int]:
        """Inputs and targets are as long as the text."""
        return length, length

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"]) -> PairExample:
        """The damaged text and the text."""
        return by_row(self._row, rows[:, :-1], keys)

    def _row(self, text: Int[Array, " length"], key: Key[Array, ""]) -> PairExample:
        ids, tokens, count = self.vocabulary, text, jnp.asarray(len(text), jnp.int32)
        for noise, noise_key in zip(self.noises, jax.random.split(key, len(self.noises)), strict=True):
            tokens, count = noise.damage(tokens, count, noise_key, ids)
        return PairExample(
            inputs=tokens,
            input_segments=(jnp.arange(len(text)) < count).astype(jnp.int32),
            tokens=late(text, ids.bos),
            targets=text,
            weights=jnp.ones(len(text)),
            segments=jnp.ones_like(text),
        )
