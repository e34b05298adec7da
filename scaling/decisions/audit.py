"""The audit: which law predicts runs it has not seen, how far, and what moves when the table grows.

Every law is fitted below a compute cut-off and predicts the runs above it, for several cut-offs; then without each
size. A law is as good as these errors, whatever its residuals: the form that fits best need not extrapolate best
(Caballero et al. 2022, arXiv:2210.14891, and Alabdulmohsin et al. 2022, arXiv:2209.06640, choose forms that way).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd

from scaling import runs
from scaling.decisions.drift import Drift, chance, drifts, three
from scaling.decisions.trials import Bench, Extrapolation, LeftOut, Trial, degenerate, marks_of
from scaling.display import Displayed, Page, Section, count, interval, plain, share
from scaling.estimate import LEVEL
from scaling.fitting import solver
from scaling.fitting.fit import Fit, Objective
from scaling.laws import CHINCHILLA, LAWS, Law, get

_CHANCE = 0.05
Found = TypeVar("Found")
_LOW = 0.8  # coverage below which 95 % intervals are called too narrow


@dataclass(frozen=True)
class Score:
    """How a law did on all cut-offs, each cut-off counted once.

    Attributes:
        law: its name; 'nearest run' for the baseline, which predicts the loss of the fitted run nearest in (log N,
            log D) and so knows no law.
        error: root mean square of log(measured / predicted).
        bias: mean of it.
        coverage: share of the predicted runs in their intervals; nan where there are none.
        tied: probability, by bootstrap over runs, that it is no worse than the best.
        left_out: how it did on each size fitted without it.
        cutoffs: how it did at each.
        same: laws that are the same function of the same columns.
    """

    law: str
    error: float
    bias: float
    coverage: float
    tied: float
    left_out: LeftOut
    cutoffs: tuple[Extrapolation, ...]
    same: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit(Displayed):
    """What a table of runs says about laws; made by `audit`.

    Attributes:
        runs: rows audited.
        convention: which columns are N and C.
        scores: laws by error, the best first.
        baseline: what the ranking is measured against; None where no cut-off is possible.
        design: why no law of parameters and data can be told from this table; empty when it can.
        refused: law -> why it was not extrapolated.
        drifts: of exponents.
        drifting: the law whose exponents they are.
        warnings: what to know before trusting it.
        notes: what was derived or dropped, and how it was done.
        fits: law -> its fit to the whole table.
    """

    runs: int
    convention: runs.Convention
    scores: tuple[Score, ...]
    baseline: Score | None
    design: str
    refused: Mapping[str, str]
    drifts: tuple[Drift, ...]
    drifting: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    fits: Mapping[str, Fit] = field(repr=False)

    @property
    def answer(self) -> str:
        """One or two sentences."""
        refusal = f"{self.design[0].upper()}{self.design[1:]}: laws of both are refused. " if self.design else ""
        if not self.scores:
            return f"{refusal}No law is ranked."
        best, reach = self.scores[0], max(each.reach for each in self.scores[0].cutoffs)
        said = (
            f"{refusal}{best.law} predicts best: {share(best.error)} error (root mean square) on runs up to "
            f"{_times(reach)} times beyond the compute it was fitted on; the nearest run as a guess errs by "
            f"{share(self.baseline.error)}."
        )
        others = [each.law for each in self.scores[1:] if each.tied >= _CHANCE]
        if others:
            said += f" Not worse beyond chance: {', '.join(others)}."
        moving = [drift.quantity for drift in self.drifts if drift.moves]
        if moving:
            said += f" The exponents of {self.drifting} drift with scale ({', '.join(moving)})."
        return said

    def page(self) -> Page:
        """What is shown."""
        sections = []
        if self.scores:
            rows = [_row(score) for score in (*self.scores, self.baseline)]
            at = tuple(f"<{each.cutoff:.2g}" for each in self.scores[0].cutoffs)
            title = "Held-out error: fitted below a cut-off in FLOPs, tried on the runs above"
            header = ("law", "error", "bias", f"in {LEVEL:.0%}", "p(ties)", *at, "size out", "worst at N")
            sections.append(Section(title, header, tuple(rows)))
        if self.drifts:
            head = ("", *(_below(cutoff) for cutoff in self.drifts[0].cutoffs), "chance")
            rows = tuple(
                (each.quantity, *(interval(value, three) for value in each.estimates), chance(each.chance))
                for each in self.drifts
            )
            sections.append(Section(f"Drift of {self.drifting} with the cut-off", head, rows))
        if self.refused:
            why = {}  # laws refused for one reason are one row
            for name, reason in self.refused.items():
                why.setdefault(reason, []).append(name)
            rows = tuple((", ".join(names), reason) for reason, names in why.items())
            sections.append(Section("Not extrapolated", ("law", "why"), rows))
        said = tuple(drift.text for drift in self.drifts)
        return Page(self.answer, self.warnings, tuple(sections), (*said, *self.notes))

    def to_dict(self) -> dict:
        """Everything that was found, as plain types for JSON."""

        def score(each: Score) -> dict:
            return vars(each) | {"left_out": vars(each.left_out), "cutoffs": [vars(at) for at in each.cutoffs]}

        return plain(
            {
                "answer": self.answer,
                "runs": self.runs,
                "columns": vars(self.convention),
                "ranking": [score(each) for each in self.scores],
                "baseline": score(self.baseline) if self.baseline else None,
                "design": self.design,
                "refused": dict(self.refused),
                "drift": {
                    "law": self.drifting,
                    "quantities": [vars(each) | {"moves": each.moves, "text": each.text} for each in self.drifts],
                },
                "fits": {name: found.to_dict() for name, found in self.fits.items()},
                "warnings": self.warnings,
                "notes": self.notes,
            }
        )


def _row(score: Score) -> tuple[str, ...]:
    errors = tuple(share(each.error) for each in score.cutoffs)
    coverage = f"{score.coverage:.0%}" if np.isfinite(score.coverage) else "–"
    tied = f"{score.tied:.2f}" if np.isfinite(score.tied) else "–"
    left = score.left_out
    worst = f"{share(left.worst_error)} at {count(left.worst_size)}" if np.isfinite(left.worst_error) else "–"
    return (score.law, share(score.error), f"{score.bias:+.2%}", coverage, tied, *errors, share(left.error), worst)


def _times(factor: float) -> str:
    return f"{float(f'{factor:.3g}'):,.10g}"


def _below(cutoff: float) -> str:
    return f"below {cutoff:.2g}" if np.isfinite(cutoff) else "all runs"


def audit(
    table: runs.Source,
    laws: Sequence[Law | str] | None = None,
    *,
    cutoffs: Sequence[float] | None = None,
    objective: Objective | None = None,
    convention: runs.Convention | None = None,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Audit:
    """Rank laws by how well they predict runs they were not fitted on, and watch their exponents drift.

    Args:
        table: a file, a frame, or a checked `runs.Table`.
        laws: laws or names; unless said otherwise every law of the loss whose columns the table has.
        cutoffs: FLOPs below which to fit; chosen from the table unless said otherwise.
        objective: of every fit; `Objective.usual` of its number of rows unless said otherwise.
        convention: which columns are N and C.
        columns: our name -> the table's.
        where: keeps rows, such as "loss < 3".
        resamples: of the bootstrap behind each interval.
        seed: of the bootstraps.

    Returns:
        The audit. A table that cannot tell laws apart (one size, every run at one D/N, too few runs) gives an audit
        without ranking that says why.

    Raises:
        ValueError: the table is unusable, a law is unknown or of another target than the loss, or a cut-off leaves
            nothing to fit or to predict.
    """
    checked = runs.load(table, columns=columns, where=where, convention=convention)
    convention = convention or runs.Convention()
    frame = convention.view(checked.frame)
    bench = Bench(frame, objective, resamples, seed)
    fits, refused = _fit_all(bench, _asked(laws, frame))
    kept, same = _distinct(fits)
    marks = marks_of(frame, cutoffs)
    trials = _each(kept, lambda law: bench.below(fits[law], marks))
    for law in [law for law, found in trials.items() if any(each.refused for each in found)]:
        refused[law.name] = next(each.refused for each in trials.pop(law) if each.refused)
    scores, baseline = _scores(bench, fits, trials, marks, same)
    drifting, moving = _drifts(bench, fits, trials, scores)
    design = degenerate({name: frame[name].to_numpy(np.float64) for name in ("params", "tokens")})
    notes = list(checked.notes)
    if scores:
        notes += _notes(scores, fits, resamples)
    return Audit(
        runs=len(frame),
        convention=convention,
        scores=scores,
        baseline=baseline,
        design=design,
        refused=refused,
        drifts=moving,
        drifting=drifting,
        warnings=_warnings(frame, design, scores, baseline, fits),
        notes=tuple(notes),
        fits={law.name: found for law, found in fits.items()},
    )


def _fit_all(bench: Bench, asked: Sequence[Law]) -> tuple[dict[Law, Fit], dict[str, str]]:
    def attempt(law: Law) -> Fit | str:
        try:
            return bench.fit(law)
        except ValueError as error:
            return str(error)

    found = _each(asked, attempt)
    fits = {law: each for law, each in found.items() if isinstance(each, Fit)}
    return fits, {law.name: each for law, each in found.items() if isinstance(each, str)}


def _each(some: Sequence[Law], function: Callable[[Law], Found]) -> dict[Law, Found]:
    """What a function finds for each law, several at a time: XLA compiles and computes outside Python's lock."""
    with ThreadPoolExecutor(solver.processors()) as pool:
        return dict(zip(some, pool.map(function, some), strict=True))


def _asked(laws: Sequence[Law | str] | None, frame: pd.DataFrame) -> list[Law]:
    if laws is None:
        numeric = set(frame.select_dtypes("number"))
        return [law for law in LAWS.values() if law.target == "loss" and numeric.issuperset(law.columns)]
    asked = [get(law) if isinstance(law, str) else law for law in laws]
    for law in asked:
        if law.target != "loss":
            raise ValueError(f"an audit ranks laws of the loss; law {law.name!r} predicts {law.target}")
        for name in law.columns:
            if name not in frame:
                raise ValueError(f"law {law.name!r} needs column {name!r}" + runs.nearest(name, map(str, frame)))
    return asked


def _distinct(fits: dict[Law, Fit]) -> tuple[list[Law], dict[str, tuple[str, ...]]]:
    """Laws that are different functions, and for each the names of those that are the same."""
    kept, same = [], {}
    for law, found in fits.items():
        twins = [
            other
            for other in kept
            if set(other.columns) == set(law.columns)
            and len(other.parameters) == len(law.parameters)
            and np.allclose(fits[other].residuals, found.residuals, rtol=0, atol=1e-7)
        ]
        if twins:
            same[twins[0].name] = (*same.get(twins[0].name, ()), law.name)
        else:
            kept.append(law)
    return kept, same


def _scores(
    bench: Bench,
    fits: dict[Law, Fit],
    trials: dict[Law, list[Trial]],
    marks: list[float],
    same: dict[str, tuple[str, ...]],
) -> tuple[tuple[Score, ...], Score | None]:
    """Laws by error; intervals, put in `trials`, and sizes left out are asked only of laws that beat the baseline."""
    if not marks or not trials:
        return (), None
    guesses = [bench.nearest_run(mark) for mark in marks]
    size = {law: _mean_square(found) for law, found in trials.items()}
    best = trials[min(size, key=size.get)]

    def score(name: str, found: list[Trial], left_out: LeftOut) -> Score:
        at = tuple(bench.extrapolation(each) for each in found)
        return Score(
            law=name,
            error=float(np.sqrt(_mean_square(found))),
            bias=float(np.mean([each.bias for each in at])),
            coverage=float(np.mean([each.coverage for each in at])),
            tied=_no_worse(found, best, bench.seed),
            left_out=left_out,
            cutoffs=at,
            same=same.get(name, ()),
        )

    def score_law(law: Law) -> Score:
        found = trials[law]
        contends = size[law] < _mean_square(guesses) or found is best
        if contends:
            found[:] = [bench.with_intervals(each) for each in found]
        return score(law.name, found, bench.leave_sizes_out(fits[law]) if contends else LeftOut())

    scores = [*_each([*trials], score_law).values()]
    scores.sort(key=lambda each: each.error)
    return tuple(scores), score("nearest run", guesses, bench.leave_sizes_out(None))


def _mean_square(found: Sequence[Trial]) -> float:
    return float(np.mean([np.nanmean(each.errors**2) for each in found]))


def _no_worse(one: Sequence[Trial], best: Sequence[Trial], seed: int, draws: int = 2000) -> float:
    """Probability that one law's error is no larger than another's: paired, runs drawn with replacement."""
    square, least = (np.stack([each.errors**2 for each in found]) for found in (one, best))
    apart, asked = np.nan_to_num(square - least), np.isfinite(square).astype(float)
    rows = square.shape[1]
    weights = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(float)
    with np.errstate(invalid="ignore"):
        mean = np.nanmean((weights @ apart.T) / (weights @ asked.T), axis=1)
    return float(np.mean(mean <= 0))


def _drifts(
    bench: Bench, fits: dict[Law, Fit], trials: dict[Law, list[Trial]], scores: tuple[Score, ...]
) -> tuple[str, tuple[Drift, ...]]:
    """Of the Chinchilla law, or of the law that predicts best where that one is refused."""
    order = {score.law: rank for rank, score in enumerate(scores)}
    for law in sorted(trials, key=lambda law: (law is not CHINCHILLA, order.get(law.name, 0))):
        boots = [*(each.boot for each in trials[law]), bench.bootstrap(fits[law])]
        if len(boots) > 1 and all(boots):
            marks = [*(each.cutoff for each in trials[law]), np.inf]
            return law.name, drifts(law, bench.frame, marks, boots)
    return "", ()


def _notes(scores: tuple[Score, ...], fits: dict[Law, Fit], resamples: int) -> list[str]:
    """How the ranking was made, and what of it is not what it seems."""
    reach = ", ".join(_times(each.reach) for each in scores[0].cutoffs)
    twins = ", ".join(f"{' and '.join(score.same)} as {score.law}" for score in scores if score.same)
    unsure = [law.name for law, found in fits.items() if not found.certificate.passed]
    notes = [f"Runs above the cut-offs reach {reach} times beyond those below."]
    notes += [f"Ranked once, being the same function of these columns: {twins}."] if twins else []
    notes += [f"No certified optimum on all runs, so of little worth: {', '.join(unsure)}."] if unsure else []
    return [
        *notes,
        "Errors are of log(measured / predicted); a positive bias promises too much. Intervals of predictions: "
        f"bootstrap, {resamples} resamples, {LEVEL:.0%}, with the noise of one run. p(ties): of being no worse than "
        "the best, by bootstrap over the runs predicted. Intervals and sizes left out are asked only of laws that beat "
        "the nearest run.",
    ]


def _warnings(
    frame: pd.DataFrame, design: str, scores: tuple[Score, ...], baseline: Score | None, fits: dict[Law, Fit]
) -> tuple[str, ...]:
    found = []
    if design:
        found.append(
            f"{design}, so the effects of parameters and data cannot be told apart: laws of both are refused, and no "
            "optimal size can be read off this table. Runs at other tokens per parameter would mend it."
        )
    decades = float(np.ptp(np.log10(frame["flops"])))
    if not scores and not design:
        found.append(
            f"{len(frame)} runs over {decades:.1f} decades of compute are too few or too alike to fit laws below a "
            "compute cut-off and try them above it."
        )
    elif scores and decades < 1:
        found.append("compute spans less than one decade, so even the largest reach tested is short.")
    if scores:
        best = scores[0]
        if best.error >= baseline.error:
            found.append(f"no law predicts better than the loss of the nearest run ({share(baseline.error)}).")
        if best.coverage < _LOW:
            found.append(
                f"{LEVEL:.0%} intervals of {best.law} held only {best.coverage:.0%} of the runs above the cut-offs: "
                "take its extrapolations as less sure than they say."
            )
        found += [f"{law.name}: {each}" for law, fit in fits.items() if law.name == best.law for each in fit.warnings]
    return tuple(found)
