"""What the interactive part of the report needs: every law's answer on a grid of budgets, and the runs to draw.

The page does no statistics: it interpolates, by a cubic in log C, estimates made here at ten budgets a decade.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline

from scaling import laws, runs
from scaling.approaches import conventions
from scaling.approaches.held_out import HeldOut
from scaling.approaches.study import Approach, Study
from scaling.certainty.bootstrap import Bootstrap, bootstrap
from scaling.estimate import Estimate
from scaling.figures import beside
from scaling.figures.axes import selection
from scaling.fitting import quantities
from scaling.fitting.fit import fit
from scaling.fitting.powerlaw import Compute
from scaling.laws import Law
from scaling.published import PublishedLaw
from scaling.report.tables import findings, typeset

A_DECADE = 10
"""Budgets a decade of the grid."""

PUBLISHED_FROM = 1e17
"""FLOPs below which published laws, fitted to larger runs, are not shown."""

BEYOND = 1e4
"""How far the budgets reach beyond the largest run."""

FURTHER = ("kaplan-nd",)
"""Laws of N and D offered beside the three approaches."""

_SEARCHED = 4  # one budget in so many is searched for the optimum of every draw
_CURVES, _CURVE_POINTS = 120, 24  # training curves sent, and points of each
_NO_INTERVAL = Estimate(float("nan"), float("nan"), float("nan"))

_PARAMS = {"params": "all parameters", "params_nonembedding": "without embeddings", "params_active": "active per token"}
_FLOPS = {"flops": "the table's FLOPs", "flops_6nd": "6ND", "flops_kaplan": "6ND without embeddings"}
_PAIRS = (
    ("params", "flops"),
    ("params", "flops_6nd"),
    ("params_active", "flops"),
    ("params_nonembedding", "flops"),
    ("params_nonembedding", "flops_kaplan"),
)


@dataclass(frozen=True)
class Answer:
    """What one law or approach says at a budget.

    Attributes:
        params: N of the lowest loss.
        tokens: D.
        ratio: D / N.
        loss: nats per token; None where there is no law of the loss.
    """

    params: Estimate
    tokens: Estimate
    ratio: Estimate
    loss: Estimate | None


def countings(frame: pd.DataFrame, main: runs.Convention) -> tuple[runs.Convention, ...]:
    """The ways to count N and C to switch between, `main` first: those a table has, and that somebody has used."""
    used = {runs.Convention(*pair) for pair in _PAIRS}
    return tuple(dict.fromkeys([main, *(each for each in conventions.available(frame) if each in used)]))


def of_params_and_tokens(further: Sequence[str | Law]) -> tuple[Law, ...]:
    """Laws by name or as they are.

    Raises:
        ValueError: no such law, or one that needs more than N and D or predicts another target than the loss.
    """
    found = tuple(laws.get(each) if isinstance(each, str) else each for each in further)
    for law in found:
        if set(law.columns) != {"params", "tokens"} or law.target != "loss":
            raise ValueError(
                f"law {law.name!r} predicts {law.target} from {', '.join(law.columns)}; the report offers laws of the "
                "loss that read params and tokens alone"
            )
    return found


def words(study: Study) -> str:
    """What N and C count in a study, for people."""
    params, flops = study.convention.params, study.convention.flops
    compute = "6ND" if flops == "flops" and (study.cost.k, study.cost.g) == (6, 1) else _FLOPS.get(flops, flops)
    return f"N: {_PARAMS.get(params, params)}, C: {compute}"


def _of_study(found: Study, approach: Approach, budgets: np.ndarray) -> list[Answer]:
    answers = []
    for flops in budgets:
        best = found.optima(float(flops))[approach]
        n, d = best.params, best.tokens
        # At a given budget more parameters mean fewer tokens, so the ends of D / N pair opposite ends.
        ratio = Estimate(d.value / n.value, d.low / n.high, d.high / n.low)
        answers.append(Answer(n, d, ratio, best.loss))
    return answers


def _of_law(boot: Bootstrap, cost: Compute, budgets: np.ndarray) -> list[Answer]:
    law, names = boot.fit.law, boot.fit.law.names
    every = {name: np.append(boot.samples[:, i], boot.fit.parameters[name]) for i, name in enumerate(names)}
    # Each draw's optimum is all but a power law, so it is searched for at some budgets and a spline gives the others.
    some = np.unique([*range(0, len(budgets), _SEARCHED), len(budgets) - 1])
    log_c, found = np.log(budgets), [np.log(quantities.optimum(law, every, cost, flops)[0]) for flops in budgets[some]]
    finite = np.isfinite(found).all(axis=0)
    sizes = np.full((len(budgets), len(finite)), np.nan)
    sizes[:, finite] = np.exp(CubicSpline(log_c[some], np.array(found)[:, finite])(log_c))
    answers = []
    for flops, params in zip(budgets, sizes, strict=True):
        tokens = cost.tokens(flops, params)
        there = (params, tokens, tokens / params, law({"params": params, "tokens": tokens}, every))
        answers.append(Answer(*(_positive(boot, each) for each in there)))
    return answers


def _positive(boot: Bootstrap, draws: np.ndarray) -> Estimate:
    """An interval in the logarithm; the last of the draws is the value."""
    draws, value = draws[:-1], float(draws[-1])
    if not np.isfinite(value) or np.isfinite(draws).mean() < 0.5:
        return Estimate(value, float("nan"), float("nan"))
    log = boot.of(np.log(draws), float(np.log(value)))
    return Estimate(value, float(np.exp(log.low)), float(np.exp(log.high)))


def _of_published(law: PublishedLaw, budgets: np.ndarray) -> list[Answer]:
    answers = []
    for flops in budgets:
        n, d, loss = beside.at(law, float(flops))
        answers.append(Answer(*(Estimate(value, float("nan"), float("nan")) for value in (n, d, d / n, loss))))
    return answers


def _entry(name: str, text: str, answers: Sequence[Answer], **more) -> dict:
    """One law in the page's data: log10 of each quantity and the ends of its interval on the grid."""
    entry = {"name": name, "text": text}
    for key, field in (("n", "params"), ("d", "tokens"), ("ratio", "ratio"), ("loss", "loss")):
        estimates = [getattr(each, field) or _NO_INTERVAL for each in answers]
        entry[key] = [_logs([getattr(each, end) for each in estimates]) for end in ("value", "low", "high")]
    return entry | more


def _logs(values: Sequence[float]) -> list[float | None] | None:
    """Base-10 logarithms to a millionth; None for a column without any value."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log10(np.asarray(values, np.float64))
    good = np.isfinite(logs)
    return [round(float(x), 6) if ok else None for x, ok in zip(logs, good, strict=True)] if good.any() else None


def _significant(values: np.ndarray, digits: int = 6) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def _exponent(a: Estimate) -> list[float | None]:
    return [round(float(x), 4) if np.isfinite(x) else None for x in (a.value, a.low, a.high)]


def _laws(found: Study, further: Sequence[Law], budgets: np.ndarray, rows: np.ndarray) -> list[dict]:
    """The three approaches and further laws; what could not be fitted is there with its reason."""
    entries, exponents = [], found.exponents()
    columns = {name: found.view[name].to_numpy(np.float64)[rows] for name in ("params", "tokens")}
    for approach in Approach:
        if approach in found.missing:
            entries.append({"name": approach.value, "missing": found.missing[approach]})
            continue
        text, more = "", {}
        if approach is Approach.PARAMETRIC:
            boot = found.parametric.bootstrap
            text, more = typeset(boot.fit.law.text), {"predicted": _significant(boot.fit.predict(columns))}
        more["a"] = _exponent(exponents[approach][0])
        entries.append(_entry(approach.value, text, _of_study(found, approach, budgets), **more))
    middle = float(np.exp(np.log(found.view["flops"]).mean()))
    for law in further:
        try:
            best = fit(runs.Table(found.view), law)
            boot = bootstrap(best, resamples=found.resamples, seed=found.seed)
        except ValueError as error:
            entries.append({"name": law.name, "missing": str(error)})
            continue
        a = _exponent(boot.quantity(quantities.params_exponent(law, found.cost, middle)))
        name = f"law {law.name}" + ("" if best.certificate.passed else " (no certified optimum)")
        answers, predicted = _of_law(boot, found.cost, budgets), _significant(best.predict(columns))
        entries.append(_entry(name, typeset(law.text), answers, predicted=predicted, a=a))
    return entries


def _published(budgets: np.ndarray) -> list[dict]:
    entries = []
    for law in beside.with_optimum():
        # Where they were fitted: the exponent of a law with more than two power laws depends on the budget.
        slope = float(np.log10(beside.at(law, 1e21)[0] / beside.at(law, 1e20)[0]))
        text, a = typeset(law.convention), [round(slope, 4), None, None]
        entries.append(_entry(law.name, text, _of_published(law, budgets), a=a))
    return entries


def _parabolas(found: Study) -> list[dict]:
    if found.isoflop is None:
        return []
    params, drawn = found.view["params"].to_numpy(np.float64), []
    for budget in found.isoflop.budgets:
        if len(budget.rows) >= 3 and np.isfinite(budget.coefficients).all():
            sizes = params[budget.rows]
            ends = {"from": sizes.min() / 1.1, "to": sizes.max() * 1.1, "flops": budget.flops, "centre": budget.centre}
            ends = {name: float(f"{value:.6g}") for name, value in ends.items()}
            coefficients = [float(f"{value:.7g}") for value in budget.coefficients]
            drawn.append(ends | {"coefficients": coefficients, "left_out": bool(budget.refused)})
    return drawn


def _training(found: Study) -> list[dict]:
    if found.curves is None:
        return []
    names = found.curves["run"].drop_duplicates().to_numpy()
    kept = names[np.unique(np.linspace(0, len(names) - 1, min(len(names), _CURVES)).astype(int))]
    drawn = []
    for _, curve in found.curves[found.curves["run"].isin(kept)].groupby("run"):
        curve = curve.sort_values("flops")
        curve = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _CURVE_POINTS)).astype(int))]
        points = {"c": _significant(curve["flops"], 5), "loss": _significant(curve["loss"], 5)}
        drawn.append(points | {"n": float(curve["params"].iloc[0])})
    return drawn


def _view(found: Study, held: tuple[HeldOut, ...], further: Sequence[Law]) -> dict:
    """Everything the page shows under one convention."""
    view, rows = found.view, selection(len(found.frame))
    low = np.floor(np.log10(view["flops"].min()) * A_DECADE) / A_DECADE
    top = max([float(view["flops"].max()) * BEYOND, *(each.flops for each in held)])
    steps = int(np.ceil((np.log10(top) - low) * A_DECADE)) + 1
    grid = low + np.arange(steps) / A_DECADE
    return {
        "name": words(found),
        "columns": [found.convention.params, found.convention.flops],
        "cost": str(found.cost),
        "choice": list(Approach).index(found.choice),
        "grid": {"start": round(float(low), 6), "step": 1 / A_DECADE, "count": steps},
        "reach": [float(view["flops"].min()), float(view["flops"].max())],
        "laws": _laws(found, further, 10**grid, rows),
        "published": _published(10**grid) if top >= PUBLISHED_FROM else [],
        "n": _significant(view["params"].to_numpy(np.float64)[rows]),
        "c": _significant(view["flops"].to_numpy(np.float64)[rows]),
        "published_from": PUBLISHED_FROM,
        "parabolas": _parabolas(found),
        "curves": _training(found),
        "findings": findings(found),
        "warnings": sum(each.severity.value == "warning" for each in found.diagnostics),
    }


def data(
    found: Study,
    held: tuple[HeldOut, ...],
    *,
    further: Sequence[str | Law] = FURTHER,
) -> dict:
    """Plain types for the page: shared columns of the runs, and one entry a convention.

    Args:
        found: the study, of the convention shown first.
        held: held-out runs, under that convention.
        further: laws of N and D offered beside the three approaches.
    """
    chosen = of_params_and_tokens(further)
    rows, frame = selection(len(found.frame)), found.frame
    names = frame["run"].astype(str) if "run" in frame else "row " + (frame.index + 1).astype(str)
    views, refused = [], []
    for convention in countings(frame, found.convention):
        try:
            other = conventions.under(found, convention)
        except ValueError as error:
            refused.append(f"{convention}: {error}")
            continue
        views.append(_view(other, held if other is found else (), chosen))
    return {
        "runs": {
            "name": [str(name)[:40] for name in np.asarray(names)[rows]],
            "d": _significant(frame["tokens"].to_numpy(np.float64)[rows]),
            "loss": _significant(frame["loss"].to_numpy(np.float64)[rows]),
            "of": len(frame),
        },
        "held": [
            {"name": each.run[:40] or "held out", "n": each.params, "d": each.tokens, "c": each.flops}
            | {"loss": each.loss, "predicted": [each.predicted.value, each.predicted.low, each.predicted.high]}
            for each in held
        ],
        "conventions": views,
        "refused": refused,
    }


def script(content: dict) -> str:
    """The data as JSON that may stand inside a script element."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
