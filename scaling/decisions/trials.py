"""Trials of laws: fitted to a part of a table, tried on the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from scaling import runs
from scaling.approaches.isoflop import group_budgets
from scaling.certainty.bootstrap import Bootstrap, bootstrap
from scaling.display import count
from scaling.fitting import solver
from scaling.fitting.fit import Fit, Objective, fit
from scaling.fitting.starts import starting_points
from scaling.laws import Law, array

_CUTOFFS = 4
_FITTED, _SHARE, _PREDICTED = 10, 0.15, 3  # runs that a cut-off leaves to fit, and to predict, at least
_SIZES = 8
_STARTS = 8
_TOGETHER = 0.02  # log columns that leave their common line by less than this say nothing apart from each other


def degenerate(columns: Mapping[str, Float[np.ndarray, " rows"]]) -> str:
    """Why runs cannot tell the effects of some columns apart; empty when they can.

    Args:
        columns: name -> positive values.
    """
    logs = {name: np.log(values) for name, values in columns.items()}
    for name, values in logs.items():
        if np.ptp(values) < _TOGETHER:
            return f"every run has the same {name} ({count(float(np.exp(values.mean())))})"
    if len(logs) < 2:
        return ""
    centred = np.stack([values - values.mean() for values in logs.values()], axis=1)
    _, spread, axes = np.linalg.svd(centred / np.sqrt(len(centred)), full_matrices=False)
    if len(spread) == len(logs) and spread[-1] >= _TOGETHER:
        return ""
    together = [name for name, weight in zip(logs, axes[-1], strict=True) if abs(weight) > 0.1]
    if set(together) == {"params", "tokens"}:
        ratio = logs["tokens"] - logs["params"]
        if np.ptp(ratio) < 5 * _TOGETHER:
            return f"every run has the same tokens per parameter ({np.exp(ratio.mean()):.3g}), a collinear design"
    return f"{' and '.join(together)} move together in every run, a collinear design"


@dataclass(frozen=True)
class Extrapolation:
    """A law fitted below one cut-off and tried above it, in numbers.

    Attributes:
        cutoff: FLOPs; runs below are fitted.
        fitted: number of runs fitted.
        predicted: number of runs predicted.
        reach: largest FLOPs predicted over largest fitted.
        error: root mean square of log(measured / predicted).
        bias: mean of it; positive where the law promises too much.
        coverage: share of the predicted runs that fell in their intervals; nan where there are none.
    """

    cutoff: float
    fitted: int
    predicted: int
    reach: float
    error: float
    bias: float
    coverage: float


@dataclass(frozen=True)
class Trial:
    """A law, or a guess without one, fitted below a cut-off and tried above it.

    Attributes:
        cutoff: FLOPs.
        refused: why it could not be fitted; empty when it was, and the rest is given.
        fit: to the runs below; its certificate and warnings are those of the fit to all runs, where it began. None of
            a guess.
        errors: log(measured / predicted), one a row of the table; nan for the runs that were fitted.
        boot: the resamples of the fit, once intervals were asked for and where they can be given.
        inside: whether each predicted run fell in its interval; nan where there is none.
    """

    cutoff: float
    refused: str = ""
    fit: Fit | None = field(default=None, repr=False)
    errors: Float[np.ndarray, " rows"] | None = field(default=None, repr=False)
    boot: Bootstrap | None = field(default=None, repr=False)
    inside: Float[np.ndarray, " rows"] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LeftOut:
    """Each size predicted by a fit to the others.

    Attributes:
        error: root mean square of log(measured / predicted); nan where without one of the sizes there is no fit.
        worst_size: geometric mean N of the size predicted worst.
        worst_error: its error.
    """

    error: float = float("nan")
    worst_size: float = float("nan")
    worst_error: float = float("nan")


@dataclass(frozen=True)
class Bench:
    """The table on which laws are tried.

    Attributes:
        frame: a checked table under its convention.
        objective: of every fit; the usual one of its number of rows when None.
        resamples: of every bootstrap.
        seed: of every bootstrap.
    """

    frame: pd.DataFrame = field(repr=False)
    objective: Objective | None
    resamples: int
    seed: int

    def fit(self, law: Law) -> Fit:
        """A law fitted to all rows.

        Raises:
            ValueError: they do not determine it; the message says why.
        """
        if reason := self._undetermined(law):
            raise ValueError(reason)
        return fit(runs.Table(self.frame), law, objective=self.objective)

    def _undetermined(self, law: Law, rows: Bool[np.ndarray, " rows"] | slice = slice(None)) -> str:
        part, needed = self.frame[rows], 2 * len(law.parameters)
        if reason := degenerate({name: part[name].to_numpy() for name in law.columns if name not in law.unchecked}):
            return reason
        if len(part) < needed:
            return f"{len(part)} runs for {len(law.parameters)} parameters; at least {needed} are asked for"
        return ""

    def bootstrap(self, found: Fit) -> Bootstrap | None:
        """The resamples of a fit; None where most of them reach no optimum, so that no interval would mean much."""
        try:
            return bootstrap(found, resamples=self.resamples, seed=self.seed)
        except ValueError:
            return None

    def below(self, found: Fit, cutoffs: Sequence[float]) -> list[Trial]:
        """A law fitted below each cut-off and tried above, given its fit to all rows.

        Begun at the optimum of all rows and at a few of the law's own starting points.
        """
        law, flops = found.law, self.frame["flops"].to_numpy(np.float64)
        starts = solver.encode(law, starting_points(law, found.columns, self.frame["loss"].to_numpy(np.float64)))
        starts = np.concatenate([found.theta[None], starts[:: max(len(starts) // _STARTS, 1)]])
        why = {cutoff: self._undetermined(law, flops < cutoff) for cutoff in cutoffs}
        asked = [cutoff for cutoff in cutoffs if not why[cutoff]]
        below = [flops < cutoff for cutoff in asked]
        objectives = [self.objective or Objective.usual(int(rows.sum())) for rows in below]
        fits = dict(zip(asked, self._refitted(found, starts, below, objectives), strict=True))
        return [
            self._trial(fits[cutoff], cutoff, flops < cutoff)
            if cutoff in fits
            else Trial(cutoff, f"below {cutoff:.3g} FLOPs, {why[cutoff]}")
            for cutoff in cutoffs
        ]

    def _trial(self, found: Fit, cutoff: float, below: Bool[np.ndarray, " rows"]) -> Trial:
        predicted = found.predict({name: array(self.frame[name]) for name in found.law.columns})
        errors = np.where(below, np.nan, np.log(self.frame["loss"].to_numpy(np.float64) / predicted))
        if not np.isfinite(errors[~below]).all():
            return Trial(cutoff, f"fitted below {cutoff:.3g} FLOPs, it is not finite above")
        return Trial(cutoff, "", found, errors)

    def _refitted(
        self,
        found: Fit,
        starts: Float[np.ndarray, "starts parameters"],
        masks: Sequence[Bool[np.ndarray, " rows"]],
        objectives: Sequence[Objective],
    ) -> list[Fit]:
        """A law fitted to some rows, for several choices of them: the lowest of all starts of each.

        One batch for the solver: what is not fitted counts nothing.
        """
        if not masks:
            return []
        weights = [rows * found.weights / found.weights[rows].mean() for rows in masks]
        solution = solver.minimise(
            found.law,
            found.columns,
            theta=np.tile(starts, (len(masks), 1)),
            target=np.log(self.frame["loss"].to_numpy(np.float64))[None],
            weights=np.repeat(weights, len(starts), axis=0),
            delta=np.repeat([each.threshold for each in objectives], len(starts)),
        )
        best = np.nanargmin(solution.value.reshape(len(masks), len(starts)), axis=1) + len(starts) * np.arange(
            len(masks)
        )
        fits = []
        for rows, weight, objective, at in zip(masks, weights, objectives, best, strict=True):
            values = map(float, solver.decode(found.law, solution.theta[at]))
            parameters = dict(zip(found.law.names, values, strict=True))
            columns = {name: values[rows] for name, values in found.columns.items()}
            fits.append(
                replace(
                    found,
                    parameters=parameters,
                    objective=objective,
                    value=float(solution.value[at]),
                    residuals=np.log(self.frame["loss"].to_numpy(np.float64)[rows] / found.law(columns, parameters)),
                    columns=columns,
                    weights=weight[rows],
                )
            )
        return fits

    def with_intervals(self, trial: Trial) -> Trial:
        """A trial with intervals for the runs it predicted."""
        boot = self.bootstrap(trial.fit)
        if boot is None:
            return trial
        asked = np.isfinite(trial.errors)
        points = self.frame.loc[asked, [*trial.fit.law.columns]].to_dict("records")
        measured = self.frame["loss"][asked]
        inside = np.full(len(asked), np.nan)
        inside[asked] = [loss in boot.new_run(point) for loss, point in zip(measured, points, strict=True)]
        return replace(trial, boot=boot, inside=inside)

    def nearest_run(self, cutoff: float) -> Trial:
        """The loss of the run nearest in (log N, log D) below a cut-off, as a guess above."""
        below = (self.frame["flops"] < cutoff).to_numpy()
        error = np.full(len(below), np.nan)
        error[~below] = np.log(self.frame["loss"][~below] / self._nearest(below, ~below))
        return Trial(cutoff, errors=error)

    def _nearest(self, known: Bool[np.ndarray, " rows"], asked: Bool[np.ndarray, " rows"]) -> np.ndarray:
        where = np.log(self.frame[["params", "tokens"]].to_numpy(np.float64))
        distance = np.sum((where[asked][:, None] - where[known][None]) ** 2, axis=2)
        return self.frame["loss"].to_numpy(np.float64)[known][np.argmin(distance, axis=1)]

    def extrapolation(self, trial: Trial) -> Extrapolation:
        """A trial in numbers."""
        above = np.isfinite(trial.errors)
        flops = self.frame["flops"].to_numpy(np.float64)
        return Extrapolation(
            cutoff=trial.cutoff,
            fitted=int((~above).sum()),
            predicted=int(above.sum()),
            reach=float(flops[above].max() / flops[~above].max()),
            error=float(np.sqrt(np.mean(trial.errors[above] ** 2))),
            bias=float(np.mean(trial.errors[above])),
            coverage=float("nan") if trial.inside is None else float(np.mean(trial.inside[above])),
        )

    def leave_sizes_out(self, found: Fit | None) -> LeftOut:
        """Every size predicted by a fit to the others, or guessed from the nearest run when no law is given.

        Fits start from the optimum of the whole table, all sizes at once.
        """
        size = self.frame["params"].to_numpy(np.float64)
        groups = _sizes(size)
        out = np.stack([np.isin(np.arange(len(size)), rows) for rows in groups])
        if len(groups) < 3 or any(self._undetermined(found.law, ~each) for each in out if found is not None):
            return LeftOut()
        log_loss = np.log(self.frame["loss"].to_numpy(np.float64))
        if found is None:
            errors = [log_loss[each] - np.log(self._nearest(~each, each)) for each in out]
        else:
            fits = self._refitted(found, found.theta[None], list(~out), [found.objective] * len(out))
            errors = [
                log_loss[each] - np.log(part.predict({name: x[each] for name, x in found.columns.items()}))
                for each, part in zip(out, fits, strict=True)
            ]
        each = np.array([np.sqrt(np.mean(error**2)) for error in errors])
        worst = int(np.argmax(each))
        return LeftOut(
            error=float(np.sqrt(np.mean(np.concatenate(errors) ** 2))),
            worst_size=float(np.exp(np.log(size[groups[worst]]).mean())),
            worst_error=float(each[worst]),
        )


def marks_of(frame: pd.DataFrame, given: Sequence[float] | None = None) -> list[float]:
    """Cut-offs in FLOPs to fit below: as given, or between the budgets of the table, evenly in log compute.

    Raises:
        ValueError: a given one leaves nothing to fit or nothing to predict.
    """
    flops = np.sort(frame["flops"].to_numpy(np.float64))
    if given is not None:
        for cutoff in given:
            if not flops[0] < cutoff <= flops[-1]:
                raise ValueError(
                    f"a cut-off of {cutoff:.3g} FLOPs leaves no runs to fit or none to predict; the table spans "
                    f"{flops[0]:.3g} to {flops[-1]:.3g}"
                )
        return sorted(float(cutoff) for cutoff in given)
    groups = group_budgets(flops)  # a cut-off goes between budgets, not through one
    marks = [float(np.sqrt(flops[one].max() * flops[other].min())) for one, other in pairwise(groups)]
    fewest = max(_FITTED, int(_SHARE * len(flops)))
    marks = [mark for mark in marks if (flops < mark).sum() >= fewest and (flops >= mark).sum() >= _PREDICTED]
    sizes = {name: frame[name].to_numpy(np.float64) for name in ("params", "tokens")}
    if not degenerate(sizes):  # a table that tells N and D apart is cut where what is left does so too
        below = {mark: (frame["flops"] < mark).to_numpy() for mark in marks}
        marks = [mark for mark in marks if not degenerate({name: x[below[mark]] for name, x in sizes.items()})]
    if len(marks) <= _CUTOFFS:
        return marks
    logs = np.log(marks)
    wanted = np.linspace(logs[0], logs[-1], _CUTOFFS)
    return [marks[i] for i in sorted({int(np.argmin(np.abs(logs - each))) for each in wanted})]


def _sizes(params: Float[np.ndarray, " rows"]) -> list[np.ndarray]:
    """Rows of each size, neighbouring sizes joined to about equally many rows where there are many."""
    groups = group_budgets(params)
    if len(groups) <= _SIZES:
        return groups
    ends = np.cumsum([len(group) for group in groups])
    part = (ends - 1) * _SIZES // ends[-1]
    return [
        np.concatenate([group for group, at in zip(groups, part, strict=True) if at == each])
        for each in np.unique(part)
    ]
