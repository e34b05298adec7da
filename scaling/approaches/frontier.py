"""Approach 1: the lower envelope of loss against compute, and the sizes that lie on it.

Hoffmann et al. 2022 (arXiv:2203.15556), section 3.1. With training curves the envelope is taken over every point of
every run; without them, over the best final loss of each budget.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from scaling import runs
from scaling.approaches.isoflop import gathered, group_budgets, loss_curve, stray
from scaling.certainty.bootstrap import Bootstrap
from scaling.fitting.powerlaw import PowerLaw, line

_GRID = 120  # compute values at which the envelope is read, evenly spread in log
_CURVE_POINTS = 16  # of them, those the loss curve is fitted through
CURVE_COLUMNS = ("run", "params", "tokens", "flops", "loss")
"""What a table of training curves holds: one row a measurement of one run under way."""


@dataclass(frozen=True)
class Frontier:
    """Approach 1 on one table.

    Attributes:
        points: the envelope, columns `flops`, `params`, `tokens`, `loss`.
        params: N_opt(C).
        tokens: D_opt(C).
        loss: L_opt(C).
        curves: whether training curves were used, or final losses alone.
        notes: what was left out and why.
    """

    points: pd.DataFrame = field(repr=False)
    params: PowerLaw
    tokens: PowerLaw
    loss: Bootstrap | None
    curves: bool
    notes: tuple[str, ...]


def lower_envelope(x: Float[np.ndarray, " rows"], loss: Float[np.ndarray, " rows"]) -> np.ndarray:
    """Rows that no other row with at most as much x beats, by increasing x."""
    order = np.lexsort((loss, x))
    best = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    return order[loss[order] < best]


def check_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """The usable rows of a table of training curves.

    Raises:
        ValueError: a column is missing; the message offers the nearest.
    """
    for name in CURVE_COLUMNS:
        if name not in curves:
            raise ValueError(f"the curves have no column {name!r}" + runs.nearest(name, map(str, curves.columns)))
    numbers = curves[list(CURVE_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    usable = (np.isfinite(numbers) & (numbers > 0)).all(axis=1)
    return numbers.assign(run=curves["run"].astype(str))[usable].reset_index(drop=True)


def frontier(
    frame: pd.DataFrame, curves: pd.DataFrame | None = None, *, resamples: int = 1000, seed: int = 0
) -> Frontier:
    """Fit approach 1.

    Args:
        frame: a checked table under its convention: columns `params`, `tokens`, `flops`, `loss`.
        curves: training curves (`CURVE_COLUMNS`), losses held-out or smoothed; noise bends an envelope downward.
        resamples: bootstrap draws of whole runs, with curves.
        seed: of the draws.

    Returns:
        The envelope and the power laws through it.

    Raises:
        ValueError: fewer than two compute values at which a size in the middle of the ladder is best.
    """
    if curves is None or curves.empty:
        return _from_finals(frame)
    return _from_curves(check_curves(curves), resamples=resamples, seed=seed)


def _from_finals(frame: pd.DataFrame) -> Frontier:
    groups = group_budgets(frame["flops"].to_numpy())
    points, refused = [], []
    for rows in groups:
        budget = frame.iloc[rows]
        if len(budget) < 3:
            continue
        best = budget.loc[budget["loss"].idxmin()]
        if budget["params"].nunique() > 1 and budget["params"].min() < best["params"] < budget["params"].max():
            points.append(best[["flops", "params", "tokens", "loss"]].astype(float))
        else:
            refused.append((budget["flops"].median(), "the best run is the smallest or largest there is"))
    notes = ["Without training curves the envelope is the best final loss of each budget."]
    notes += [f"Left out of approach 1, {where} FLOPs: {why}." for why, where in gathered(refused).items()]
    notes += stray(groups, "approach 1")
    if len(points) < 2:
        raise ValueError(f"approach 1 needs two budgets with a best size inside and found {len(points)}")
    envelope = pd.DataFrame(points).reset_index(drop=True)
    flops = envelope["flops"].to_numpy()
    return Frontier(
        points=envelope,
        params=line(flops, envelope["params"].to_numpy()),
        tokens=line(flops, envelope["tokens"].to_numpy()),
        loss=None,
        curves=False,
        notes=tuple(notes),
    )


def _from_curves(curves: pd.DataFrame, *, resamples: int, seed: int) -> Frontier:
    names, params, span, tables = [], [], [], []
    for name, run in curves.groupby("run", sort=True):
        run = run.sort_values("flops").drop_duplicates("flops", keep="last")
        if len(run) > 1:
            names.append(name)
            params.append(run["params"].iloc[0])
            tables.append((np.log(run["flops"]), np.log(run["loss"]), np.log(run["tokens"])))
            span.append((run["flops"].iloc[0], run["flops"].iloc[-1]))
    params, span = np.array(params), np.array(span).reshape(-1, 2)
    if len(np.unique(params)) < 3:
        raise ValueError(f"approach 1 needs curves of three sizes and found {len(np.unique(params))}")
    # From where the first run ended: before, every run is far from the end of its learning-rate decay, and the best of
    # them is the one with the luckiest rate. Where all runs end together there is nothing but the way there.
    ends = span[:, 1]
    first = ends.min() if ends.min() < ends.max() / 2 else span[:, 0].min()
    grid = np.linspace(np.log(first), np.log(ends.max()), _GRID)
    outside = {"left": np.nan, "right": np.nan}
    loss = np.stack([np.interp(grid, flops, value, **outside) for flops, value, _ in tables])
    tokens = np.stack([np.interp(grid, flops, value, **outside) for flops, _, value in tables])
    loss = np.where(np.isnan(loss), np.inf, loss)

    def envelope(chosen: np.ndarray):
        """Columns of the grid at which the best of some runs is neither the smallest nor the largest size."""
        here = loss[chosen]
        best = chosen[np.argmin(here, axis=0)]
        columns = np.arange(len(grid))
        inside = np.isfinite(loss[best, columns])
        inside &= (params[best] > params.min()) & (params[best] < params.max())
        # An envelope only descends: a point above an earlier one is a gap between curves, not a frontier.
        height = loss[best, columns]
        inside &= height <= np.minimum.accumulate(height) + 1e-12
        return best[inside], columns[inside]

    best, columns = envelope(np.arange(len(names)))
    if len(np.unique(params[best])) < 2:
        raise ValueError(
            "approach 1 needs an envelope that moves across two sizes at least, the smallest and the largest apart"
        )
    points = pd.DataFrame(
        {
            "run": np.array(names)[best],
            "flops": np.exp(grid[columns]),
            "params": params[best],
            "tokens": np.exp(tokens[best, columns]),
            "loss": np.exp(loss[best, columns]),
        }
    )
    spaced = np.unique(np.linspace(0, len(columns) - 1, _CURVE_POINTS).astype(int))
    kept = columns[spaced]
    generator = np.random.default_rng(seed)
    samples, heights = [], []
    for _ in range(resamples):
        chosen = np.unique(generator.integers(len(names), size=len(names)))
        drawn, at = envelope(chosen)
        if len(np.unique(params[drawn])) < 2:
            continue
        x = grid[at]
        samples.append(
            [np.polyfit(x - grid[columns].mean(), y, 1)[::-1] for y in (np.log(params[drawn]), tokens[drawn, at])]
        )
        heights.append(loss[chosen][:, kept].min(axis=0))
    samples, heights = np.array(samples), np.array(heights)
    heights = heights[np.isfinite(heights).all(axis=1)]

    def through(index: int, name: str) -> PowerLaw:
        law = line(points["flops"].to_numpy(), points[name].to_numpy())
        return PowerLaw(law.centre, law.height, law.exponent, samples[:, index], law.points, law.scatter)

    at = np.exp(grid[kept])
    return Frontier(
        points=points,
        params=through(0, "params"),
        tokens=through(1, "tokens"),
        loss=loss_curve(at, np.exp(loss[best[spaced], kept]), draws=heights if len(heights) > 20 else None, spread=1.0),
        curves=True,
        notes=(
            f"Envelope over the training curves of {len(names)} runs; points where the smallest or largest size is "
            "best are left out. Losses before a learning-rate decay has ended lie above what a shorter run would "
            "have reached.",
        ),
    )
