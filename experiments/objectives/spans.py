"""Predicting spans that were cut out: T5's span corruption, and UL2's mixture of denoisers."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from experiments.objectives.cross_entropy import TokenObjective
from experiments.objectives.example import PairExample, Sides, by_row, late
from experiments.objectives.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(TokenObjective):
    """Span corruption (Raffel et al. 2020): a sentinel stands for each span, and the spans are predicted.

    The input is the text with a sentinel in the place of each span, then `eos`; the target is each sentinel with what
    it stands for, then `eos`. How many tokens and spans are cut out depends on the length alone, so that shapes do not
    change; where they are is random: kept and cut spans take turns, and each way to divide the kept tokens, and the
    cut ones, among so many spans is as likely as any other. A row is one sequence, whatever documents it holds.

    Attributes:
        vocabulary: what ids mean.
        density: share of the tokens that is cut out.
        span: mean tokens of a span; None for a single span, which is then the end of the row.
        mode: number of the mode token that the input begins with (Tay et al. 2023), or None.

    Raises:
        ValueError: for a density or span out of range, or a mode whose id is not reserved.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.BOTH,)

    vocabulary: Vocabulary
    density: float = 0.15
    span: float | None = 3.0
    mode: int | None = None

    def __post_init__(self):
        if not 0 < self.density < 1:
            raise ValueError(f"span corruption: density {self.density:g} must be above 0 and below 1")
        if self.span is not None and self.span < 1:
            raise ValueError(f"span corruption: spans of {self.span:g} tokens must be of 1 or more")
        if self.mode is not None:
            self.vocabulary.mode(self.mode)

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        spans = "end" if self.span is None else f"spans-of-{self.span:.3g}"
        mode = "" if self.mode is None else f"-mode-{self.mode}"
        return f"span-corruption-{100 * self.density:.3g}%-{spans}{mode}"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.vocabulary.size

    def counts(self, length: int) -> tuple[int, int]:
        """How many of `length` tokens are cut out, and in how many spans.

        Raises:
            ValueError: if the row is too short.
        """
        if length < 2:
            raise ValueError(f"span corruption: rows of {length} tokens are too short, 2 are needed")
        cut = min(max(round(length * self.density), 1), length - 1)
        return cut, 1 if self.span is None else min(max(round(cut / self.span), 1), cut, length - cut)

    def lengths(self, length: int) -> tuple[int, int]:
        """Tokens of inputs and of targets.

        Raises:
            ValueError: if the row is too short, or has more spans than there are sentinels.
        """
        cut, spans = self.counts(length)
        self.vocabulary.sentinels(spans, modes=0 if self.mode is None else self.mode + 1)
        return (self.mode is not None) + length - cut + spans + 1, cut + spans + 1

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"]) -> PairExample:
        """What is left of the rows, and what was cut out."""
        return by_row(self.of_row, rows[:, :-1], keys)

    def of_row(self, text: Int[Array, " length"], key: Key[Array, ""]) -> PairExample:
        """The example of one row, without an axis for the batch."""
        ids, length = self.vocabulary, len(text)
        cut, spans = self.counts(length)
        input_length, target_length = self.lengths(length)
        kept_key, cut_key = jax.random.split(key)
        kept_sizes, cut_sizes = _divide(length - cut, spans, kept_key), _divide(cut, spans, cut_key)

        # Kept and cut spans take turns: the number of ends before a token is odd in a cut span.
        ends = jnp.cumsum(jnp.stack([kept_sizes, cut_sizes], axis=1).ravel())
        places = jnp.arange(length)
        passed = jnp.searchsorted(ends, places, side="right")
        is_cut, span = passed % 2 == 1, passed // 2
        cut_before = jnp.cumsum(is_cut) - is_cut
        lead = int(self.mode is not None)
        input_places = jnp.where(is_cut, input_length, lead + places - cut_before + span)
        target_places = jnp.where(is_cut, cut_before + span + 1, target_length)

        sentinels = jnp.asarray(ids.sentinels(spans), text.dtype)
        number = jnp.arange(spans)
        inputs = jnp.full(input_length, ids.eos, text.dtype)
        inputs = inputs.at[input_places].set(text, mode="drop")
        inputs = inputs.at[lead + jnp.cumsum(kept_sizes) + number].set(sentinels)
        if self.mode is not None:
            inputs = inputs.at[0].set(ids.mode(self.mode))
        targets = jnp.full(target_length, ids.eos, text.dtype)
        targets = targets.at[target_places].set(text, mode="drop")
        targets = targets.at[jnp.cumsum(cut_sizes) - cut_sizes + number].set(sentinels)
        return PairExample(
            inputs=inputs,
            input_segments=jnp.ones_like(inputs),
            tokens=late(targets, ids.bos),
            targets=targets,
            weights=jnp.ones(target_length),
            segments=jnp.ones_like(targets),
        )


def _divide(total: int, parts: int, key: Key[Array, ""]) -> Int[Array, " parts"]:
    """Sizes of `parts` parts of 1 or more that sum to `total`, each such division as likely as any other."""
    cuts = jnp.sort(jnp.argsort(jax.random.uniform(key, (total - 1,)))[: parts - 1]) + 1
    return jnp.diff(cuts, prepend=0, append=total)


@dataclass(frozen=True, kw_only=True)
class Mixture(TokenObjective):
    """For each row one of several denoisers, drawn by the row's key; inputs and targets are padded to the longest.

    Attributes:
        denoisers: what is drawn from.
        shares: their probabilities; empty for equal ones.

    Raises:
        ValueError: for shares that do not go with the denoisers, or denoisers of different vocabularies.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.BOTH,)

    denoisers: tuple[SpanCorruption, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self):
        if len({denoiser.vocabulary for denoiser in self.denoisers}) != 1:
            raise ValueError("mixture: give one denoiser or more, all of one vocabulary")
        if self.shares and (
            len(self.shares) != len(self.denoisers) or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6
        ):
            raise ValueError(f"mixture: {self.shares} are not the shares of {len(self.denoisers)} denoisers, sum 1")

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        labels = [denoiser.label.removeprefix("span-corruption-") for denoiser in self.denoisers]
        weighed = [f"{share:.3g}x{label}" for share, label in zip(self.shares, labels, strict=False)]
        return "mixture-" + "+".join(weighed or labels)

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.denoisers[0].vocab

    def lengths(self, length: int) -> tuple[int, int]:
        """Tokens of the longest inputs and of the longest targets.

        Raises:
            ValueError: if a denoiser cannot make an example of such rows.
        """
        inputs, targets = zip(*(denoiser.lengths(length) for denoiser in self.denoisers), strict=True)
        return max(inputs), max(targets)

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"]) -> PairExample:
        """What each row's denoiser left of it, and what it cut out."""
        return by_row(self._row, rows[:, :-1], keys)

    def _row(self, text: Int[Array, " length"], key: Key[Array, ""]) -> PairExample:
        which, key = jax.random.split(key)
        shares = self.shares or (1 / len(self.denoisers),) * len(self.denoisers)
        ends = jnp.asarray(list(itertools.accumulate(shares))[:-1])
        number = jnp.searchsorted(ends, jax.random.uniform(which), side="right")
        # All are made and one is taken, which is what a switch comes to once rows are computed side by side.
        examples = [self._padded(denoiser, text, key) for denoiser in self.denoisers]
        return jax.tree.map(lambda *parts: jnp.stack(parts)[number], *examples)

    def _padded(self, denoiser: SpanCorruption, text, key) -> PairExample:
        example, pad = denoiser.of_row(text, key), denoiser.vocabulary.pad
        inputs, targets = self.lengths(len(text))

        def fill(array, length, value):
            return jnp.pad(array, (0, length - len(array)), constant_values=value)

        return PairExample(
            inputs=fill(example.inputs, inputs, pad),
            input_segments=fill(example.input_segments, inputs, 0),
            tokens=fill(example.tokens, targets, pad),
            targets=fill(example.targets, targets, pad),
            weights=fill(example.weights, targets, 0),
            segments=fill(example.segments, targets, 0),
        )


def ul2(vocabulary: Vocabulary) -> Mixture:
    """UL2 (Tay et al. 2023, table 1): regular, sequential and extreme denoisers with modes 0, 1 and 2."""
    regular = [(3.0, 0.15, 0), (8.0, 0.15, 0)]
    sequential = [(None, 0.25, 1)]
    extreme = [(3.0, 0.5, 2), (8.0, 0.5, 2), (64.0, 0.15, 2), (64.0, 0.5, 2)]
    return Mixture(
        denoisers=tuple(
            SpanCorruption(vocabulary=vocabulary, span=span, density=density, mode=mode)
            for span, density, mode in regular + sequential + extreme
        )
    )
