"""Two tables of runs, two architectures or recipes: which is better at a budget, how surely, by how much compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from scaling import laws, runs
from scaling.approaches.isoflop import SAME_BUDGET
from scaling.certainty.bootstrap import Bootstrap, bootstrap
from scaling.decisions.comparison import Comparison, Crossing, Verdict, signed
from scaling.display import number
from scaling.estimate import Estimate
from scaling.fitting import quantities
from scaling.fitting.fit import Fit, Objective, fit
from scaling.fitting.powerlaw import Compute, compute
from scaling.laws import Law

_PER_DECADE = 8  # budgets at which the lowest loss is evaluated; in between it is interpolated
_REACH = 4.0  # decades below and above a budget in which equal loss is looked for
_BEYOND = 10.0  # times the compute both tables hold: how far a crossing is looked for, and the last budget shown
_FAR = 100.0
_UNITS = (0.6, 1.65)  # a ratio of typical losses outside hints at bits against nats (ln 2 = 0.69), or other text
_SAME_COST = 0.1


def _range(estimate: Estimate) -> str:
    return f"{signed(estimate.low)} to {signed(estimate.high)}"


def compare(
    first: runs.Source,
    second: runs.Source,
    *,
    flops: float | Sequence[float] | None = None,
    law: Law | str = "chinchilla",
    names: tuple[str, str] = ("first", "second"),
    at: Mapping[str, float] | None = None,
    objective: Objective | None = None,
    convention: runs.Convention | None = None,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Which of two tables of runs is better at a budget, each at its own compute-optimal size.

    Both are fitted by one law and resampled independently; draws of their lowest losses are compared in pairs.

    Args:
        first: a file, a frame, or a checked `runs.Table`.
        second: the other.
        flops: budgets; from the compute that both tables hold, and ten times beyond it, unless said otherwise.
        law: one that reads `params` and `tokens`.
        names: what to call them.
        at: values of what else the law reads.
        objective: of both fits.
        convention: which columns are N and C, in both.
        columns: our name -> the tables'.
        where: keeps rows of both.
        resamples: of both bootstraps.
        seed: of them.

    Returns:
        The comparison. Other conventions, units or tokenizers, fits that failed their certificate and budgets beyond
        the runs are in its `warnings`.

    Raises:
        ValueError: an unusable table, a law that has no optimal size, or a budget that is no positive number.
    """
    law = laws.get(law) if isinstance(law, str) else law
    convention, at = convention or runs.Convention(), dict(at or {})
    needs = ("params", "tokens", "flops", "loss", *law.columns)
    frames, boots, costs, notes = [], [], [], []
    for i, (name, source) in enumerate(zip(names, (first, second), strict=True)):
        try:
            checked = runs.load(source, columns=columns, where=where, convention=convention, needs=needs)
            frame = convention.view(checked.frame)
            boot = bootstrap(
                fit(checked, law, objective=objective, convention=convention), resamples=resamples, seed=seed + i
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        frames.append(frame)
        boots.append(boot)
        costs.append(compute(*(frame[column].to_numpy(np.float64) for column in ("params", "tokens", "flops"))))
        notes += [f"{name}: {note}" for note in checked.notes]
    spans = [(frame["flops"].min(), frame["flops"].max()) for frame in frames]
    shared = max(low for low, _ in spans), min(high for _, high in spans)
    budgets = _budgets(flops, frames, shared)
    curves = [_Curve.of(boot, cost, budgets, spans, at) for boot, cost in zip(boots, costs, strict=True)]
    verdicts = tuple(_verdict(boots, curves, frames, each, shared[1]) for each in budgets)
    crossing = _crossing(boots[0], *curves, names, spans)
    warnings = _warnings(names, frames, boots, costs, spans, verdicts)
    notes = [
        "Losses are compared as the tables give them; that both were measured on the same text with the same "
        f"tokenizer is assumed unless said. {convention}.",
        "Probabilities and intervals: "
        + "; ".join(f"{name}, {boot.method}" for name, boot in zip(names, boots, strict=True))
        + "; independently.",
        *notes,
    ]
    return Comparison(tuple(names), verdicts, crossing, tuple(costs), warnings, tuple(notes), tuple(boots))


def _budgets(flops, frames: list[pd.DataFrame], shared: tuple[float, float]) -> list[float]:
    if flops is not None:
        given = [float(each) for each in np.atleast_1d(flops)]
        if not given or not all(np.isfinite(each) and each > 0 for each in given):
            raise ValueError(f"a compute budget is a positive number of FLOPs, not {flops!r}")
        return sorted(given)
    low, high = shared
    if low >= high:  # no compute that both hold: between them
        low, high = sorted(shared)
    middle = frames[0]["flops"].to_numpy(np.float64)
    middle = middle[np.argmin(np.abs(np.log(middle / np.sqrt(low * high))))]
    return sorted({float(low), float(np.clip(middle, low, high)), float(high), float(_BEYOND * high)})


@dataclass(frozen=True)
class _Curve:
    """Lowest loss along budgets: of the fit, and of every draw."""

    log_flops: Float[np.ndarray, " budgets"]
    value: Float[np.ndarray, " budgets"]
    draws: Float[np.ndarray, "budgets draws"]

    @staticmethod
    def of(boot: Bootstrap, cost: Compute, budgets: list[float], spans, at: Mapping[str, float]) -> "_Curve":
        low = min(min(budgets), min(low for low, _ in spans)) / 10**_REACH
        high = max(max(budgets), _BEYOND * max(high for _, high in spans)) * 10**_REACH
        low = max(low, 1e3 * cost.k)  # a thousand tokens through one parameter: no law reaches down there
        grid = np.linspace(np.log(low), np.log(high), int(np.log10(high / low) * _PER_DECADE) + 1)
        law = boot.fit.law
        sets = boot.fit.parameters, boot.by_name
        losses = [
            [quantities.optimum(law, values, cost, float(np.exp(x)), columns=at)[2] for x in grid] for values in sets
        ]
        return _Curve(grid, np.array(losses[0], np.float64), np.stack(losses[1]))

    def at(self, flops: float) -> tuple[float, Float[np.ndarray, " draws"]]:
        """Loss of the fit and of the draws at a budget."""
        return float(np.interp(np.log(flops), self.log_flops, self.value)), _along(
            self.log_flops, self.draws, np.log(flops)
        )


def _along(x: np.ndarray, y: np.ndarray, where: float) -> np.ndarray:
    i = int(np.clip(np.searchsorted(x, where) - 1, 0, len(x) - 2))
    part = (where - x[i]) / (x[i + 1] - x[i])
    return (1 - part) * y[i] + part * y[i + 1]


def _verdict(
    boots: list[Bootstrap], curves: list[_Curve], frames: list[pd.DataFrame], flops: float, largest: float
) -> Verdict:
    (one, other), (first, second) = boots, curves
    (a, a_draws), (b, b_draws) = first.at(flops), second.at(flops)
    count = min(len(a_draws), len(b_draws))
    apart = b_draws[:count] - a_draws[:count]
    middle = np.log(flops)
    worth = [
        np.exp(_reached(first.log_flops, curve, loss) - middle)
        for curve, loss in ((first.value[:, None], np.array([b])), (first.draws[:, :count], b_draws[:count]))
    ]
    multiplier = [np.where((each < 10**-_REACH) | (each > 10**_REACH), np.nan, each) for each in worth]
    best = np.where(worth[1] > 1, np.inf, 0.0)  # out of reach upward, or downward
    known = np.where(np.isnan(multiplier[1]), best, multiplier[1])
    tail = (1 - one.level) / 2
    low, high = np.quantile(known, [tail, 1 - tail], method="closest_observation")
    value = float(multiplier[0][0]) if np.isfinite(multiplier[0][0]) else float(np.where(worth[0][0] > 1, np.inf, 0.0))
    return Verdict(
        flops=flops,
        first=one.of(a_draws, a),
        second=other.of(b_draws, b),
        difference=one.of(apart, b - a),
        probability=float(np.mean(apart < 0)),
        measured=tuple(_lowest_measured(frame, flops) for frame in frames),
        multiplier=Estimate(value, min(float(low), value), max(float(high), value)),
        beyond=float(flops / largest),
    )


def _lowest_measured(frame: pd.DataFrame, flops: float) -> float:
    near = np.abs(np.log(frame["flops"] / flops)) < np.log(SAME_BUDGET)
    return float(frame["loss"][near].min()) if near.any() else float("nan")


def _reached(x: np.ndarray, falling: Float[np.ndarray, "budgets draws"], loss: np.ndarray) -> np.ndarray:
    """Log budget at which every curve falls to its loss, interpolated; infinite where it never does."""
    below = falling <= loss
    first = np.argmax(below, axis=0)
    i = np.clip(first, 1, len(x) - 1)
    draws = np.arange(falling.shape[1])
    high, low = falling[i - 1, draws], falling[i, draws]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((high - loss) / (high - low), 0, 1)
    found = x[i - 1] + part * (x[i] - x[i - 1])
    return np.where(below.any(axis=0), np.where(first > 0, found, -np.inf), np.inf)


def _crossing(boot: Bootstrap, first: _Curve, second: _Curve, names, spans) -> Crossing:
    low, high = np.log(min(low for low, _ in spans)), np.log(_BEYOND * max(high for _, high in spans))
    grid = first.log_flops
    # Both curves on one grid: that of the first, where the second is interpolated.
    count = min(first.draws.shape[1], second.draws.shape[1])
    inside = (grid >= low) & (grid <= high)
    other = np.stack([_along(second.log_flops, second.draws[:, :count], x) for x in grid[inside]])
    apart = other - first.draws[inside, :count]
    apart_value = np.interp(grid[inside], second.log_flops, second.value) - first.value[inside]
    where = _turn(grid[inside], apart)
    value = float(_turn(grid[inside], apart_value[:, None])[0])
    better_below = names[1] if apart_value[0] < 0 else names[0]
    crosses = np.isfinite(where)
    if not np.isfinite(value):
        return Crossing(Estimate(np.nan, np.nan, np.nan), float(crosses.mean()), better_below)
    log = boot.of(where[crosses], value) if crosses.sum() >= 20 else Estimate(value, np.nan, np.nan)
    return Crossing(Estimate(*(float(np.exp(x)) for x in vars(log).values())), float(crosses.mean()), better_below)


def _turn(x: np.ndarray, apart: Float[np.ndarray, "budgets draws"]) -> np.ndarray:
    """Where each difference first changes sign, interpolated; nan where it does not."""
    change = np.sign(apart[1:]) != np.sign(apart[:-1])
    i, draws = np.argmax(change, axis=0), np.arange(apart.shape[1])
    before, after = apart[i, draws], apart[i + 1, draws]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = x[i] + before / (before - after) * (x[i + 1] - x[i])
    return np.where(change.any(axis=0), found, np.nan)


def _warnings(
    names: tuple[str, str],
    frames: list[pd.DataFrame],
    boots: list[Bootstrap],
    costs: list[Compute],
    spans,
    verdicts: tuple[Verdict, ...],
) -> tuple[str, ...]:
    found = []
    for name, boot in zip(names, boots, strict=True):
        found += [f"{name}: {each}" for each in _fit_warnings(boot.fit)]
    found += _incomparable(names, frames, costs)
    (low_a, high_a), (low_b, high_b) = spans
    if max(low_a, low_b) > min(high_a, high_b):
        found.append("the tables share no compute: every budget lies beyond the runs of one of them.")
    contradicted = [
        (each, each.measured[1] - each.measured[0])
        for each in verdicts
        if np.isfinite(each.measured).all() and each.measured[1] - each.measured[0] not in each.difference
    ]
    if contradicted:
        at, apart = contradicted[-1]
        found.append(
            f"near {at.flops:.3g} FLOPs the best runs measured differ by {signed(apart)} nats, outside the interval "
            f"of the fits, {_range(at.difference)}: the law does not describe these tables well enough, so trust its "
            "direction more than its size."
        )
    far = [each for each in verdicts if each.beyond > _FAR]
    if far:
        found.append(
            f"{far[-1].flops:.3g} FLOPs lie {far[-1].beyond:.3g} times beyond the largest compute both tables hold; "
            "the probability is right only if both laws go on as they do."
        )
    return tuple(found)


def _fit_warnings(fit: Fit) -> list[str]:
    failed = [] if fit.certificate.passed else ["the fit failed its certificate, so its optimum is not certified."]
    return [*failed, *fit.warnings]


def _incomparable(names: tuple[str, str], frames: list[pd.DataFrame], costs: list[Compute]) -> list[str]:
    """What the two tables count differently."""
    found = []
    for column, why in (
        ("vocab", "losses per token of different tokenizers do not compare"),
        ("tokenizer", "losses per token of different tokenizers do not compare"),
        ("dataset", "losses on different text do not compare"),
        ("length", "losses at different context lengths do not compare"),
    ):
        values = [set(frame[column].dropna().unique()) for frame in frames if column in frame]
        if len(values) == 2 and values[0] != values[1]:
            shown = " and ".join(", ".join(map(str, sorted(each, key=str)[:3])) or "none" for each in values)
            cure = ""
            if all("bits_per_byte" in frame for frame in frames) and column in ("vocab", "tokenizer"):
                cure = "; both tables have bits_per_byte: compare that instead, as the loss"
            found.append(f"{column} differs ({shown}): {why}{cure}.")
    middle = [float(np.median(frame["loss"])) for frame in frames]
    ratio = middle[1] / middle[0]
    if not _UNITS[0] < ratio < _UNITS[1]:
        found.append(
            f"typical losses are {number(middle[0])} and {number(middle[1])}: another unit (bits against nats), "
            "tokenizer or text?"
        )
    size = float(np.sqrt(np.prod([np.exp(np.log(frame["params"]).mean()) for frame in frames])))
    per_token = [cost.flops(size, 1.0) for cost in costs]
    if abs(np.log(per_token[1] / per_token[0])) > _SAME_COST:
        found.append(
            f"a token at {size:.2g} parameters costs {per_token[0]:.3g} FLOPs in {names[0]} and {per_token[1]:.3g} in "
            f"{names[1]}: another convention of FLOPs or parameters, or an architecture that costs more."
        )
    return found
