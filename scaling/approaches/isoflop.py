"""Approach 2: at each budget the size of lowest loss, then power laws through the minima.

Hoffmann et al. 2022 (arXiv:2203.15556), section 3.2. Each minimum is read off a parabola, and once more off a spline
through the runs, which assumes no shape; a budget whose minimum its runs do not show is left out, aloud.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from scaling import laws, runs
from scaling.approaches.minimum import akima, parabola, pooled_noise
from scaling.certainty.bootstrap import Bootstrap, small_sample
from scaling.fitting import solver
from scaling.fitting.fit import Kind, Objective, fit
from scaling.fitting.powerlaw import PowerLaw, line

SAME_BUDGET = 1.2
"""Largest over smallest FLOPs that runs of one budget may have."""

_SETTINGS = ("learning_rate", "batch_tokens", "width", "layers", "length")
"""Columns in which runs of one size and budget may differ by choice; the better choice is kept."""


@dataclass(frozen=True)
class Budget:
    """The runs of one compute budget and the parabola through them.

    Attributes:
        flops: geometric mean of the runs' FLOPs.
        rows: the runs' rows in the table.
        coefficients: of log loss = c0 + c1 x + c2 x^2 with x = log(N) - centre.
        centre: mean log N.
        refused: why the budget has no usable minimum; empty when it has.
        doubts: what weakens a minimum that is used, in clauses.
        params: N at the minimum.
        tokens: D at the minimum.
        loss: loss at the minimum, nats per token.
        draws: bootstrap draws of log N, log D and log loss at the minimum.
    """

    flops: float
    rows: Float[np.ndarray, " runs"] = field(repr=False)
    coefficients: Float[np.ndarray, " 3"]
    centre: float
    refused: str
    doubts: tuple[str, ...]
    params: float
    tokens: float
    loss: float
    draws: Float[np.ndarray, "draws 3"] | None = field(default=None, repr=False)

    def curve(self, params: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """Loss of the parabola at other sizes."""
        return np.exp(np.polyval(self.coefficients[::-1], np.log(params) - self.centre))


@dataclass(frozen=True)
class Trend:
    """Power laws through minima.

    Attributes:
        params: N_opt(C).
        tokens: D_opt(C).
    """

    params: PowerLaw
    tokens: PowerLaw


@dataclass(frozen=True)
class IsoFLOP:
    """Approach 2 on one table.

    Attributes:
        budgets: every budget found, with its gate.
        params: N_opt(C).
        tokens: D_opt(C).
        loss: L_opt(C), a power law above a floor where there are budgets enough to see a floor.
        akima: the power laws again with every minimum read off a spline; None where a budget has too few sizes.
        notes: what was left out and why.
    """

    budgets: tuple[Budget, ...]
    params: PowerLaw
    tokens: PowerLaw
    loss: Bootstrap | None
    akima: Trend | None
    notes: tuple[str, ...]


def group_budgets(flops: Float[np.ndarray, " rows"]) -> list[np.ndarray]:
    """Rows of equal compute, from the smallest budget up: split at the widest gap until none spans `SAME_BUDGET`."""
    order = np.argsort(flops, kind="stable")
    done, waiting = [], [order]
    while waiting:
        rows = waiting.pop()
        log = np.log(flops[rows])
        if log[-1] - log[0] <= np.log(SAME_BUDGET):
            done.append(np.sort(rows))
            continue
        gap = int(np.argmax(np.diff(log))) + 1
        waiting += [rows[gap:], rows[:gap]]
    return done


def stray(groups: list[np.ndarray], where: str) -> list[str]:
    """A note about compute values with one or two runs, which are no budgets."""
    count = sum(len(rows) < 3 for rows in groups)
    return [f"{count} compute values with one or two runs are no budgets and are left out of {where}."] if count else []


def isoflop(frame: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> IsoFLOP:
    """Fit approach 2.

    Args:
        frame: a checked table under its convention: columns `params`, `tokens`, `flops`, `loss`.
        resamples: bootstrap draws: losses are redrawn about the parabolas with the noise they leave, pooled over
            budgets.
        seed: of the draws.

    Returns:
        The power laws, and every budget with its gate.

    Raises:
        ValueError: fewer than two budgets show a minimum; the message gives each budget's reason.
    """
    flops = frame["flops"].to_numpy(np.float64)
    groups, alike = [], []
    for rows in group_budgets(flops):
        kept, said = _distinct(frame.iloc[rows])
        groups.append(rows[kept])
        alike += [(np.median(flops[rows]), said)] if said else []
    log_n, log_d, log_loss = (np.log(frame[name].to_numpy(np.float64)) for name in ("params", "tokens", "loss"))
    parts = [parabola(log_n[rows], log_loss[rows]) for rows in groups]
    noise = pooled_noise(parts)
    generator = np.random.default_rng(seed)
    budgets, splines = [], []
    for rows, part in zip(groups, parts, strict=True):
        budget = {"flops": float(np.exp(np.log(flops[rows]).mean())), "rows": rows, "refused": part.refused}
        budget |= {"coefficients": part.coefficients, "centre": part.centre}
        if part.refused:
            best = rows[np.argmin(log_loss[rows])]
            best_run = (log_n[best], log_d[best], log_loss[best])
            budgets.append(Budget(**budget, doubts=(), **_named(best_run)))
            continue
        tokens = np.polynomial.Polynomial.fit(log_n[rows], log_d[rows], deg=2)
        where, height = part.minimum(part.coefficients)
        draws = spline_draws = None
        if np.isfinite(noise):
            shocks = noise * generator.standard_normal((resamples, len(rows)))
            drawn = part.minimum(part.coefficients + shocks @ part.smoother.T)
            draws = np.stack([drawn[0], tokens(drawn[0]), drawn[1]], axis=1)
            drawn = akima(log_n[rows], log_loss[rows] + shocks)
            spline_draws = np.stack([drawn, tokens(drawn)], axis=1)
        named = _named((where, tokens(where), height))
        budgets.append(Budget(**budget, doubts=part.doubts(noise), **named, draws=draws))
        spline = akima(log_n[rows], log_loss[rows][None])[0]
        splines.append((np.array([spline, tokens(spline)]), spline_draws))
    refused = gathered((each.flops, each.refused) for each in budgets if each.refused and len(each.rows) >= 3)
    doubts = gathered((each.flops, doubt) for each in budgets for doubt in each.doubts)
    notes = [f"At {where} FLOPs {said}." for said, where in gathered(alike).items()]
    notes += [f"Left out of approach 2, {where} FLOPs: {why}." for why, where in refused.items()]
    notes += [f"At {where} FLOPs {doubt}." for doubt, where in doubts.items()]
    notes += stray(groups, "approach 2")
    good = [budget for budget in budgets if not budget.refused]
    if len(good) < 2:
        raise ValueError(f"approach 2 needs two budgets that show a minimum and found {len(good)}. " + " ".join(notes))
    if not np.isfinite(noise):
        notes.append("Every parabola passes exactly through its runs (three sizes a budget): no intervals.")
    spread = small_sample(sum(len(part.left) - 3 for part in parts if not part.refused))
    at = np.array([budget.flops for budget in good])
    draws = None if good[0].draws is None else np.stack([budget.draws for budget in good], axis=1)
    if draws is not None:
        draws = draws[np.isfinite(draws).all(axis=(1, 2))]
        draws = draws if len(draws) else None  # noise so large that every draw loses a minimum

    def through(values, draws) -> PowerLaw:
        return line(at, np.exp(values), draws=draws, spread=spread)

    minima = np.log([[budget.params, budget.tokens, budget.loss] for budget in good])
    return IsoFLOP(
        budgets=tuple(budgets),
        params=through(minima[:, 0], None if draws is None else draws[:, :, 0]),
        tokens=through(minima[:, 1], None if draws is None else draws[:, :, 1]),
        loss=loss_curve(at, np.exp(minima[:, 2]), draws=None if draws is None else draws[:, :, 2], spread=spread),
        akima=_trend(splines, through),
        notes=tuple(notes),
    )


def _trend(splines, through) -> Trend | None:
    points = np.stack([point for point, _ in splines])
    if not np.isfinite(points).all():
        return None
    draws = None if splines[0][1] is None else np.stack([each for _, each in splines], axis=1)
    return Trend(*(through(points[:, i], None if draws is None else draws[:, :, i]) for i in range(2)))


def _distinct(budget: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Runs of a budget to use, where several have one size: replicates are all kept, of tuned ones the best.

    Returns:
        Positions in the budget, and what was done, in words.
    """
    size = np.round(np.log(budget["params"].to_numpy(np.float64)), 6)
    settings = [name for name in _SETTINGS if name in budget and budget[name].nunique() > 1]
    kept, dropped, alike = np.ones(len(budget), bool), 0, False
    for value in np.unique(size):
        same = np.flatnonzero(size == value)
        if len(same) == 1:
            continue
        if any(budget[name].iloc[same].nunique() > 1 for name in settings):
            kept[same] = False
            kept[same[budget["loss"].iloc[same].argmin()]] = True
            dropped += len(same) - 1
        elif "seed" not in budget or budget["seed"].iloc[same].nunique() < len(same):
            alike = True
    said = []
    if dropped:
        said.append(f"runs are left out ({dropped}), one of the same size with other settings being better")
    if alike:
        said.append("runs of the same size are taken for replicates, no column telling them apart")
    return np.flatnonzero(kept), " and ".join(said)


def gathered(found: Iterable[tuple[float, str]]) -> dict[str, str]:
    """What is said of budgets -> the budgets it is said of, in words."""
    said = {}
    for flops, what in found:
        said.setdefault(what, []).append(f"{flops:.3g}")
    return {what: " and ".join(filter(None, (", ".join(where[:-1]), where[-1]))) for what, where in said.items()}


def loss_curve(
    flops: Float[np.ndarray, " points"],
    loss: Float[np.ndarray, " points"],
    *,
    draws: Float[np.ndarray, "draws points"] | None,
    spread: float,
) -> Bootstrap | None:
    """L_opt(C) through a few points: above a floor from four points on, without from three, None below."""
    if len(flops) < 3 or draws is None:
        return None
    law = laws.power.floored("flops") if len(flops) > 3 else laws.power.pure("flops")
    points = pd.DataFrame({"params": flops, "tokens": flops, "flops": flops, "loss": loss})
    squares = Objective(Kind.LEAST_SQUARES)
    best = fit(runs.Table(points), law, objective=squares)
    solution = solver.minimise(
        law,
        best.columns,
        theta=np.repeat(best.theta[None], len(draws), axis=0),
        target=draws,
        weights=np.ones((len(draws), len(flops))),
        delta=squares.threshold,
    )
    samples = solver.decode(law, solution.theta[np.isfinite(solution.value)])
    return Bootstrap(fit=best, samples=samples, resampled="the points of the curve", spread=spread)


def _named(point) -> dict[str, float]:
    return dict(zip(("params", "tokens", "loss"), (float(np.exp(value)) for value in point), strict=True))
