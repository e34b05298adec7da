"""Approach 2: at each budget a parabola of log loss in log N, then power laws through the minima.

Hoffmann et al. 2022 (arXiv:2203.15556), section 3.2. A parabola holds only near its minimum, so runs count less the
further their loss lies above the budget's best; and a budget whose minimum its runs do not show is left out, aloud.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from scaling import laws, runs, solver
from scaling.fitting import Kind, Objective, fit
from scaling.powerlaw import PowerLaw, line
from scaling.uncertainty import Bootstrap, small_sample

SAME_BUDGET = 1.2
"""Largest over smallest FLOPs that runs of one budget may have."""

_FAR = 0.05  # a run 5 % above the budget's best loss counts half


@dataclass(frozen=True)
class Budget:
    """The runs of one compute budget and the parabola through them.

    Attributes:
        flops: geometric mean of the runs' FLOPs.
        rows: the runs' rows in the table.
        coefficients: of log loss = c0 + c1 x + c2 x^2 with x = log(N) - centre.
        centre: mean log N.
        refused: why the budget has no usable minimum; empty when it has.
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
    params: float
    tokens: float
    loss: float
    draws: Float[np.ndarray, "draws 3"] | None = field(default=None, repr=False)

    def curve(self, params: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """Loss of the parabola at other sizes."""
        return np.exp(np.polyval(self.coefficients[::-1], np.log(params) - self.centre))


@dataclass(frozen=True)
class IsoFLOP:
    """Approach 2 on one table.

    Attributes:
        budgets: every budget found, with its gate.
        params: N_opt(C).
        tokens: D_opt(C).
        loss: L_opt(C), a power law above a floor where there are budgets enough to see a floor.
        notes: what was left out and why.
    """

    budgets: tuple[Budget, ...]
    params: PowerLaw
    tokens: PowerLaw
    loss: Bootstrap | None
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
    log_n, log_d, log_loss = (np.log(frame[name].to_numpy(np.float64)) for name in ("params", "tokens", "loss"))
    flops = frame["flops"].to_numpy(np.float64)
    groups = group_budgets(flops)
    parts = [_parabola(log_n[rows], log_loss[rows]) for rows in groups]
    usable = [part for part in parts if not part.refused]
    freedom = sum(len(part.left) - 3 for part in usable)
    noise = np.sqrt(sum(float(part.weights @ part.left**2) for part in usable) / freedom) if freedom > 0 else np.nan
    generator = np.random.default_rng(seed)
    budgets = []
    for rows, part in zip(groups, parts, strict=True):
        budget = {"flops": float(np.exp(np.log(flops[rows]).mean())), "rows": rows, "refused": part.refused}
        budget |= {"coefficients": part.coefficients, "centre": part.centre}
        if part.refused:
            best = rows[np.argmin(log_loss[rows])]
            best_run = (log_n[best], log_d[best], log_loss[best])
            budgets.append(Budget(**budget, **_named(best_run)))
            continue
        tokens = np.polynomial.Polynomial.fit(log_n[rows], log_d[rows], deg=2)
        where, height = part.minimum(part.coefficients)
        draws = None
        if np.isfinite(noise):
            shocks = noise * generator.standard_normal((resamples, len(rows)))
            drawn = part.minimum(part.coefficients + shocks @ part.smoother.T)
            draws = np.stack([drawn[0], tokens(drawn[0]), drawn[1]], axis=1)
        budgets.append(Budget(**budget, **_named((where, tokens(where), height)), draws=draws))
    notes = [
        f"The budget of {budget.flops:.3g} FLOPs is left out of approach 2: {budget.refused}."
        for budget in budgets
        if budget.refused and len(budget.rows) >= 3
    ]
    notes += stray(groups, "approach 2")
    good = [budget for budget in budgets if not budget.refused]
    if len(good) < 2:
        raise ValueError(f"approach 2 needs two budgets that show a minimum and found {len(good)}. " + " ".join(notes))
    if not np.isfinite(noise):
        notes.append("Every parabola passes exactly through its runs (three sizes a budget): no intervals.")
    spread = small_sample(freedom)
    at = np.array([budget.flops for budget in good])
    draws = None if good[0].draws is None else np.stack([budget.draws for budget in good], axis=1)
    if draws is not None:
        draws = draws[np.isfinite(draws).all(axis=(1, 2))]

    def through(index: int, name: str) -> PowerLaw:
        values = np.array([getattr(budget, name) for budget in good])
        return line(at, values, draws=None if draws is None else draws[:, :, index], spread=spread)

    losses = np.array([budget.loss for budget in good])
    return IsoFLOP(
        budgets=tuple(budgets),
        params=through(0, "params"),
        tokens=through(1, "tokens"),
        loss=loss_curve(at, losses, draws=None if draws is None else draws[:, :, 2], spread=spread),
        notes=tuple(notes),
    )


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


@dataclass(frozen=True)
class _Parabola:
    centre: float
    coefficients: np.ndarray
    smoother: np.ndarray
    weights: np.ndarray
    left: np.ndarray
    limits: tuple[float, float]
    refused: str

    def minimum(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log N and log loss at the minimum; nan where the parabola opens downward."""
        c0, c1, c2 = np.moveaxis(np.asarray(coefficients), -1, 0)
        bend = np.where(c2 > 0, c2, np.nan)
        x = np.clip(-c1 / (2 * bend), *self.limits)
        return x + self.centre, c0 + c1 * x + c2 * x * x


def _parabola(log_n: np.ndarray, log_loss: np.ndarray) -> _Parabola:
    sizes = len(np.unique(np.round(log_n, 6)))
    centre = float(log_n.mean())
    x = log_n - centre
    weights = np.ones_like(x)
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients, smoother = np.full(3, np.nan), np.zeros((3, len(x)))
    for again in range(2 if sizes >= 3 else 0):
        if again:  # the excess is measured from the first parabola's lowest point, not from the luckiest run
            fitted = design @ coefficients
            weights = 1 / (1 + ((fitted - fitted.min()) / _FAR) ** 2)
        root = np.sqrt(weights)
        smoother = np.linalg.pinv(design * root[:, None]) * root
        coefficients = smoother @ log_loss
    left = log_loss - design @ coefficients if sizes >= 3 else np.zeros_like(x)
    # A draw may move the minimum past the smallest or largest run, but not by more than half the range.
    reach = np.ptp(x) / 2
    limits = (x.min() - reach, x.max() + reach)
    lowest = x[np.argmin(log_loss)]
    refused = ""
    if sizes < 3:
        refused = f"a parabola needs three sizes and it has {sizes}"
    elif coefficients[2] <= 0:
        refused = "the parabola opens downward, so it has no minimum"
    elif not x.min() < -coefficients[1] / (2 * coefficients[2]) < x.max():
        refused = "the minimum of the parabola lies outside the sizes trained"
    elif lowest in (x.min(), x.max()):
        end = "smallest" if lowest == x.min() else "largest"
        refused = f"the lowest loss is at the {end} size, so the minimum is not bracketed"
    return _Parabola(centre, coefficients, smoother, weights, left, limits, refused)
