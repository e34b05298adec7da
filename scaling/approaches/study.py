"""Everything side by side on one table: three approaches, Kaplan's laws, diagnostics in plain words, predictions."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd

from scaling import laws, runs
from scaling.approaches.diagnostics import Diagnostic, Severity, diagnose
from scaling.approaches.frontier import Frontier, frontier, lower_envelope
from scaling.approaches.isoflop import IsoFLOP, group_budgets, isoflop
from scaling.approaches.parametric import Parametric, parametric
from scaling.display import plain
from scaling.estimate import Estimate
from scaling.fitting.fit import Objective, fit
from scaling.fitting.powerlaw import Compute, PowerLaw, compute, line


class Approach(Enum):
    """Hoffmann et al.'s three ways to the compute-optimal size; the value is the name for people."""

    FRONTIER = "1: envelope"
    ISOFLOP = "2: IsoFLOP parabolas"
    PARAMETRIC = "3: parametric law"


@dataclass(frozen=True)
class Optimum:
    """Where the loss is lowest at a budget, by one approach.

    Attributes:
        approach: whose.
        flops: the budget, in the FLOPs of the study's convention.
        params: N.
        tokens: D.
        loss: expected loss there, nats per token; None where the approach has too few points for a loss curve.
    """

    approach: Approach
    flops: float
    params: Estimate
    tokens: Estimate
    loss: Estimate | None


@dataclass(frozen=True)
class Kaplan:
    """One of Kaplan's single-variable laws, (x_c / x)^alpha, on the runs that no run with less x beats.

    Attributes:
        law: the form.
        trend: the line in log-log.
        rows: number of runs on that envelope.
    """

    law: laws.Law
    trend: PowerLaw
    rows: int

    @property
    def alpha(self) -> Estimate:
        """The exponent."""
        slope = self.trend.slope
        return Estimate(-slope.value, -slope.high, -slope.low)

    @property
    def parameters(self) -> dict[str, float]:
        """Under the law's own names."""
        alpha = -self.trend.exponent
        scale = math.exp(self.trend.centre + self.trend.height / alpha) if alpha else float("nan")
        return dict(zip(self.law.names, (scale, alpha), strict=True))

    def predict(self, x):
        """Loss at other values of the column."""
        return self.trend(x)


@dataclass(frozen=True)
class Backtest:
    """The law fitted without the largest runs, against them.

    Attributes:
        fitted: runs fitted.
        predicted: runs predicted.
        reach: largest FLOPs predicted over largest fitted.
        bias: mean of log(measured / predicted).
        error: root mean square of it.
    """

    fitted: int
    predicted: int
    reach: float
    bias: float
    error: float


@dataclass(frozen=True)
class Study:
    """What one table of runs says; made by `study`.

    Attributes:
        frame: the fitted runs, under their own column names.
        curves: training curves, where there were any.
        convention: which columns are N and C everywhere in it.
        cost: C = k N^g D of the table.
        frontier: approach 1, or None.
        isoflop: approach 2, or None.
        parametric: approach 3, or None.
        missing: why an approach is None.
        kaplan: Kaplan's L(N), L(D), L(C) by law name.
        backtest: approach 3 tested on the largest runs, or None where too few are left.
        choice: the approach predictions are made with.
        reason: why that one.
        diagnostics: what to know before trusting it.
        objective: what approach 3 minimised.
        seed: of every bootstrap.
        resamples: of every bootstrap.
    """

    frame: pd.DataFrame = field(repr=False)
    curves: pd.DataFrame | None = field(repr=False)
    convention: runs.Convention
    cost: Compute
    frontier: Frontier | None
    isoflop: IsoFLOP | None
    parametric: Parametric | None
    missing: Mapping[Approach, str]
    kaplan: Mapping[str, Kaplan]
    backtest: Backtest | None
    choice: Approach
    reason: str
    diagnostics: tuple[Diagnostic, ...]
    objective: Objective
    seed: int
    resamples: int

    @property
    def view(self) -> pd.DataFrame:
        """The runs with N and C under the names `params` and `flops`."""
        return self.convention.view(self.frame)

    def exponents(self) -> dict[Approach, tuple[Estimate, Estimate]]:
        """Exponents a of N_opt ~ C^a and b of D_opt ~ C^b, for every approach that could be fitted."""
        found = {}
        for approach, result in ((Approach.FRONTIER, self.frontier), (Approach.ISOFLOP, self.isoflop)):
            if result is not None:
                found[approach] = (result.params.slope, result.tokens.slope)
        if self.parametric is not None:
            found[Approach.PARAMETRIC] = (self.parametric.a, self.parametric.b)
        return found

    def optima(self, flops: float) -> dict[Approach, Optimum]:
        """The optimum at a budget by every approach that could be fitted.

        Args:
            flops: the budget, in the FLOPs of the study's convention.
        """
        if not (np.isfinite(flops) and flops > 0):
            raise ValueError(f"a compute budget is a positive number of FLOPs, not {flops!r}")
        found = {}
        for approach, result in ((Approach.FRONTIER, self.frontier), (Approach.ISOFLOP, self.isoflop)):
            if result is not None:
                loss = result.loss.expected({"flops": flops}) if result.loss else None
                found[approach] = Optimum(approach, flops, result.params.at(flops), result.tokens.at(flops), loss)
        if self.parametric is not None:
            found[Approach.PARAMETRIC] = Optimum(Approach.PARAMETRIC, flops, *self.parametric.optimum(flops))
        return found

    def optimum(self, flops: float) -> Optimum:
        """The optimum at a budget, by the chosen approach."""
        return self.optima(flops)[self.choice]

    def predict(self, params: float, tokens: float, *, loss_se: float = 0.0) -> Estimate:
        """The interval for the measured loss of one new run.

        Args:
            params: N of the run, under the study's convention.
            tokens: D of the run.
            loss_se: standard error of its measurement, if on other text than the table's runs.

        Returns:
            Expected loss; parameter uncertainty and the noise of one run, at least as large as the error of the
            backtest.

        Raises:
            ValueError: no approach of this study has a law of the loss.
        """
        if self.parametric is not None:
            return self.parametric.predict(params, tokens, loss_se=loss_se)
        curves = [result.loss for result in (self.isoflop, self.frontier) if result is not None and result.loss]
        if not curves:
            raise ValueError("no law of the loss could be fitted to this table: " + "; ".join(self.missing.values()))
        return curves[0].new_run({"flops": self.cost.flops(params, tokens)}, loss_se=loss_se)

    def to_dict(self) -> dict:
        """Everything that was found, as plain types for JSON."""
        exponents = self.exponents()
        approaches = {}
        for approach in Approach:
            key = approach.name.lower()
            if approach in self.missing:
                approaches[key] = {"name": approach.value, "missing": self.missing[approach]}
                continue
            a, b = exponents[approach]
            approaches[key] = {"name": approach.value, "a": a.to_dict(), "b": b.to_dict()}
        if self.frontier:
            approaches["frontier"] |= {"training_curves": self.frontier.curves, "points": len(self.frontier.points)}
        if self.isoflop:
            approaches["isoflop"] |= {
                "params": self.isoflop.params.to_dict(),
                "tokens": self.isoflop.tokens.to_dict(),
                "budgets": [
                    {"flops": each.flops, "params": each.params, "tokens": each.tokens, "loss": each.loss}
                    | {"runs": len(each.rows), "refused": each.refused}
                    for each in self.isoflop.budgets
                ],
            }
        if self.parametric:
            boot = self.parametric.bootstrap
            intervals = {name: boot.interval(name).to_dict() | {"method": boot.method} for name in boot.fit.law.names}
            approaches["parametric"] |= boot.fit.to_dict() | {"intervals": intervals, "noise": self.parametric.noise}
        return plain(
            {
                "runs": len(self.frame),
                "convention": {"params": self.convention.params, "flops": self.convention.flops},
                "compute": {"law": str(self.cost)} | self.cost.to_dict(),
                "choice": {"approach": self.choice.name.lower(), "reason": self.reason},
                "approaches": approaches,
                "kaplan": {
                    name: {"parameters": each.parameters, "alpha": each.alpha.to_dict(), "runs": each.rows}
                    for name, each in self.kaplan.items()
                },
                "backtest": vars(self.backtest) if self.backtest else None,
                "diagnostics": [{"severity": d.severity.value, "text": d.text} for d in self.diagnostics],
                "warnings": [d.text for d in self.diagnostics if d.severity is Severity.WARNING],
                "seed": self.seed,
                "resamples": self.resamples,
            }
        )

    def write(self, path: str | Path, **more) -> Path:
        """Write `to_dict()`, and anything given by name beside it, as JSON; whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(self.to_dict() | plain(more), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path


def study(
    table: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    *,
    convention: runs.Convention | None = None,
    objective: Objective | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Study:
    """Fit everything to one table of runs.

    Args:
        table: runs as `runs.read` returns them; rows with role 'held-out' are left out.
        curves: training curves with columns `run`, `params`, `tokens`, `flops`, `loss`, for approach 1.
        convention: which columns are N and C; `params` and `flops` unless said otherwise.
        objective: of approach 3; `Objective.usual` unless said otherwise.
        resamples: of every bootstrap.
        seed: of every bootstrap: the same table and seed give the same numbers to the last bit.

    Returns:
        The study; an approach that cannot be fitted is missing with its reason.

    Raises:
        ValueError: the table is unusable, or no approach can be fitted to it.
    """
    convention = convention or runs.Convention()
    checked = runs.check(runs.split(table)[0], convention=convention)
    view = convention.view(checked.frame)
    objective = objective or Objective.usual(len(view))
    if curves is not None and "run" in view:
        curves = curves[~curves["run"].isin(set(table["run"]) - set(view["run"]))] if "run" in curves else curves
    cost = compute(*(view[name].to_numpy(np.float64) for name in ("params", "tokens", "flops")))
    test = _backtest(view, objective)
    missing: dict[Approach, str] = {}

    def attempt(approach: Approach, function):
        try:
            return function()
        except ValueError as error:
            missing[approach] = str(error)
            return None

    draws = {"resamples": resamples, "seed": seed}
    noise = test.error if test else 0.0
    one = attempt(Approach.FRONTIER, lambda: frontier(view, curves, **draws))
    two = attempt(Approach.ISOFLOP, lambda: isoflop(view, **draws))
    three = attempt(Approach.PARAMETRIC, lambda: parametric(view, objective=objective, noise=noise, **draws))
    if one is None and two is None and three is None:
        raise ValueError("no approach can be fitted to this table: " + "; ".join(missing.values()))
    choice, reason = _choose(one, two, three)
    kaplan = {}
    for law in (laws.KAPLAN_N, laws.KAPLAN_D, laws.KAPLAN_C):
        x, loss = view[law.columns[0]].to_numpy(np.float64), view["loss"].to_numpy(np.float64)
        rows = lower_envelope(x, loss)
        if len(rows) >= 3:
            kaplan[law.name] = Kaplan(law, line(x[rows], loss[rows], **draws), len(rows))
    found = Study(
        frame=checked.frame,
        curves=curves,
        convention=convention,
        cost=cost,
        frontier=one,
        isoflop=two,
        parametric=three,
        missing=missing,
        kaplan=kaplan,
        backtest=test,
        choice=choice,
        reason=reason,
        diagnostics=(),
        objective=objective,
        seed=seed,
        resamples=resamples,
    )
    return Study(**{**vars(found), "diagnostics": diagnose(found, checked.notes)})


def _choose(one: Frontier | None, two: IsoFLOP | None, three: Parametric | None) -> tuple[Approach, str]:
    if three is not None and three.bootstrap.fit.certificate.passed:
        return Approach.PARAMETRIC, "it uses every run, its fit is a certified optimum, and it predicts any N and D"
    if two is not None:
        return Approach.ISOFLOP, "approach 3 has no certified optimum on this table"
    if three is not None:
        return Approach.PARAMETRIC, "approach 2 found no bracketed minima; the fit of approach 3 has warnings"
    return Approach.FRONTIER, "neither approach 2 nor approach 3 can be fitted to this table"


def _backtest(view: pd.DataFrame, objective: Objective) -> Backtest | None:
    """Approach 3 without the largest budget, or without the largest fifth of runs where there are no budgets."""
    flops = view["flops"].to_numpy(np.float64)
    largest = group_budgets(flops)[-1]
    if not 2 < len(largest) < len(view) / 2:
        largest = np.argsort(flops, kind="stable")[-max(len(view) // 5, 1) :]
    fitted, left = view.drop(index=view.index[largest]), view.iloc[largest]
    if len(fitted) < 2 * len(laws.CHINCHILLA.parameters):
        return None
    law = fit(runs.Table(fitted), laws.CHINCHILLA, objective=objective)
    error = np.log(left["loss"] / law.predict({name: left[name].to_numpy() for name in law.law.columns}))
    return Backtest(
        fitted=len(fitted),
        predicted=len(left),
        reach=float(left["flops"].max() / fitted["flops"].max()),
        bias=float(error.mean()),
        error=float(np.sqrt(np.mean(error**2))),
    )
