"""Choosing a layout: all that could be tried, pruned by arithmetic, the best few compiled, and why the others lose.

A layout is whatever the caller makes of it (mesh, what is computed again, parts of a batch); here it is only predicted,
compiled and compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from parallel.estimate import Estimate

Layout = TypeVar("Layout")

MARGIN = 1.15
"""How far the compiler may need less memory than arithmetic says, for a layout to be compiled all the same."""


def meshes(chips: int, axes: Sequence[str]) -> Iterator[dict[str, int]]:
    """Every way to write a number of chips as a product of sizes of those axes, in their order."""
    name, *others = axes
    if not others:
        yield {name: chips}
        return
    for size in range(1, chips + 1):
        if chips % size == 0:
            for rest in meshes(chips // size, others):
                yield {name: size} | rest


@dataclass(frozen=True, kw_only=True)
class Candidate(Generic[Layout]):
    """A layout and what is said of it.

    Attributes:
        layout: the layout.
        predicted: by arithmetic.
        compiled: by the compiler; None if it was not asked.
    """

    layout: Layout
    predicted: Estimate
    compiled: Estimate | None = None

    @property
    def estimate(self) -> Estimate:
        """The best that is known."""
        return self.compiled or self.predicted

    @property
    def seconds(self) -> float:
        """Of a step; by arithmetic where the compiler counts no cycles."""
        said = self.estimate.step_seconds
        return self.predicted.step_seconds if said is None else said

    def fits(self, limit: float | None, *, margin: float = 1.0) -> bool:
        """Whether it needs no more than `margin` times so many bytes a chip."""
        return limit is None or (self.estimate.memory_needed <= margin * limit and self.estimate.memory is not None)


@dataclass(frozen=True, kw_only=True)
class Found(Generic[Layout]):
    """What a search found.

    Attributes:
        candidates: those compiled that fit, the fastest first; then the others by arithmetic; then those too large.
        limit: bytes that a chip has; None for no limit.
        tried: how many layouts were considered.
    """

    candidates: tuple[Candidate[Layout], ...]
    limit: float | None
    tried: int

    @property
    def best(self) -> Candidate[Layout] | None:
        """The first, if it fits."""
        return next((each for each in self.candidates if each.fits(self.limit)), None)

    def reason(self, candidate: Candidate[Layout]) -> str:
        """Why a candidate is not the best: memory, network, compute; or how it wins."""
        best = self.best
        if not candidate.fits(self.limit):
            return f"memory: needs {candidate.estimate.memory_needed / 2**30:.3g} GiB of {self.limit / 2**30:.3g}"
        if candidate is best:
            return f"fastest that fits; {candidate.estimate.verdict}"
        # Compared in one currency: what arithmetic says of both, unless the compiler has been asked about both.
        both = candidate.compiled and best.compiled and candidate.compiled.step_seconds is not None
        own, other = (each.compiled if both else each.predicted for each in (candidate, best))
        if own.step_seconds <= 1.005 * other.step_seconds:
            more = (candidate.estimate.memory_needed - best.estimate.memory_needed) / 2**30
            return f"as fast, with {abs(more):.3g} GiB {'more' if more >= 0 else 'less'}"
        if own.network_seconds > own.compute_seconds:
            return f"network: {own.network_seconds:.3g} s, best {other.step_seconds:.3g}"
        return f"compute: {own.compute_seconds:.3g} s, best {other.step_seconds:.3g}"


def search(
    layouts: Iterable[Layout],
    predict: Callable[[Layout], Estimate],
    compile: Callable[[Layout], Estimate],
    *,
    limit: float | None,
    most: int,
    key: Callable[[Layout], Any] = lambda layout: layout,
    kind: Callable[[Layout], Any] = lambda layout: None,
    report: Callable[[Layout], None] = lambda layout: None,
) -> Found[Layout]:
    """Ranks layouts.

    Args:
        layouts: what to consider; of those with one key, the first that fits stands for all.
        predict: what arithmetic says of one.
        compile: what the compiler says of one.
        limit: bytes that a chip has.
        most: how many to compile that turn out to fit.
        key: equal for layouts that differ only in the parts of a batch, which come in the order of their number.
        kind: what arithmetic compares badly: the fastest of each kind are compiled before the second of any.
        report: told what is compiled next.
    """
    groups: dict[Any, list[Candidate[Layout]]] = {}
    for layout in layouts:
        groups.setdefault(key(layout), []).append(Candidate(layout=layout, predicted=predict(layout)))
    chosen = [next((each for each in group if each.fits(limit)), group[-1]) for group in groups.values()]
    chosen.sort(key=lambda each: (not each.fits(limit), _rank(each)))
    kinds = {kind(each.layout): each for each in reversed(chosen) if each.fits(limit, margin=MARGIN)}
    order = sorted(chosen, key=lambda each: kinds.get(kind(each.layout)) is not each)
    done, left, fitting = [], [], 0
    for candidate in order:
        if fitting >= most or not candidate.fits(limit, margin=MARGIN):
            left.append(candidate)
            continue
        report(candidate.layout)
        done.append(replace(candidate, compiled=compile(candidate.layout)))
        fitting += done[-1].fits(limit)
    left.sort(key=lambda each: (not each.fits(limit), _rank(each)))
    ranked = sorted(done, key=lambda each: (not each.fits(limit), _rank(each)))
    ranked = [each for each in ranked if each.fits(limit)] + left + [each for each in ranked if not each.fits(limit)]
    return Found(candidates=tuple(ranked), limit=limit, tried=sum(map(len, groups.values())))


def _rank(candidate: Candidate) -> tuple[float, float]:
    """Seconds to three digits, then memory."""
    seconds = candidate.seconds
    return float(f"{seconds:.3g}") if math.isfinite(seconds) else seconds, candidate.estimate.memory_needed
