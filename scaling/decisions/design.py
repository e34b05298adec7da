"""Which runs to buy next: those that shrink the interval of what is asked most, for a budget.

The draws of the bootstrap say how every candidate's loss and the target vary together. A run measured with noise s
takes cov(target, loss)^2 / (var(loss) + s^2) off the variance of the target: for a linear law this is Bayesian
c-optimal design (Chaloner and Verdinelli 1995, doi:10.1214/ss/1177009939, section 2), D-optimal when the target is all
parameters together, with the covariance of the estimator itself in place of the one a Jacobian suggests. The measured
loss need not come out as predicted: what shrinks depends on where runs are, not on what they find.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from scaling import runs
from scaling.certainty.bootstrap import Bootstrap
from scaling.display import Section, count, interval, number
from scaling.estimate import Estimate
from scaling.fitting import solver
from scaling.fitting.powerlaw import Compute
from scaling.fitting.quantities import Quantity

_LEVELS, _RATIOS = 13, 11
_SPAN = 1e4  # between the cheapest and the dearest candidate
_RARE = 0.025  # share of the table's runs on either side whose tokens per parameter are taken for odd
_TAIL = 0.005  # of draws on either side that are pulled in to the rest before covariances are taken
_SWEEPS = 4


@dataclass(frozen=True)
class Chosen:
    """One run to buy.

    Attributes:
        params: N.
        tokens: D.
        flops: what it costs.
        after: the target once this run and those before it are in the table; for all parameters together None.
        left: width of the interval over its width now.
    """

    params: float
    tokens: float
    flops: float
    after: Estimate | None
    left: float


@dataclass(frozen=True)
class NextRuns:
    """Runs to buy, in the order in which they pay most per FLOP.

    Attributes:
        target: what they make surer.
        before: its estimate now; None for all parameters together.
        chosen: the runs.
        budget: FLOPs they could cost together.
        candidates: number they were chosen from.
        noise: standard deviation of the log loss that a further run is worth to the fit: above that of normal
            residuals where the objective does not use them fully, below it where outliers are what is large.
        residual: standard deviation of the log residuals.
        edge: how many of the chosen have the fewest or most tokens per parameter offered.
    """

    target: str
    before: Estimate | None
    chosen: tuple[Chosen, ...]
    budget: float
    candidates: int
    noise: float
    residual: float
    edge: int

    @property
    def flops(self) -> float:
        """What they cost together."""
        return sum(each.flops for each in self.chosen)

    @property
    def answer(self) -> str:
        """One sentence."""
        last = self.chosen[-1]
        runs_ = f"{len(self.chosen)} runs" if len(self.chosen) > 1 else "One run"
        what = f"of {self.target}" if self.before else "of the parameters, on geometric average,"
        return (
            f"{runs_} for {self.flops:.3g} FLOPs should narrow the interval {what} to {last.left:.0%} of its width"
            + (f", {interval(last.after, _show)}." if last.after else ".")
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before buying them."""
        if self.chosen[-1].left > 0.95:
            return (
                f"runs for {self.budget:.3g} FLOPs hardly narrow {self.target}: it takes a larger budget, or runs "
                "elsewhere.",
            )
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the prediction assumes."""
        edge = (
            f"{self.edge} of the {len(self.chosen)} next runs have the fewest or most tokens per parameter offered, "
            "where the law tells most and the form of the law matters most.",
        )
        return (
            f"Next runs: chosen among {self.candidates} candidates of at most {self.budget:.3g} FLOPs together. Widths "
            "after are predictions that hold if the law does, for runs like the table's, each worth a log loss known "
            f"to {self.noise:.2%} in this fit (its residuals: {self.residual:.2%}).",
            *(edge if self.edge else ()),
        )

    def section(self) -> Section:
        """The runs as a table."""
        head = ("run", "N", "D", "D/N", "FLOPs", f"{self.target} after", "width left")
        now = interval(self.before, _show) if self.before else ""
        rows = [("now", "", "", "", "", now, "100%")]
        for i, each in enumerate(self.chosen, 1):
            row = (str(i), count(each.params), count(each.tokens), number(each.tokens / each.params))
            after = interval(each.after, _show) if each.after else ""
            rows.append((*row, f"{each.flops:.3g}", after, f"{each.left:.0%}"))
        return Section(f"Next runs, {self.flops:.3g} FLOPs in all", head, tuple(rows))

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return vars(self) | {"flops": self.flops, "chosen": [vars(each) for each in self.chosen]}


def _show(value: float) -> str:
    return count(value) if abs(value) >= 1e4 else number(value)


def candidate_grid(sizes: Mapping[str, Float[np.ndarray, " rows"]], cost: Compute, budget: float) -> pd.DataFrame:
    """Runs of many budgets, up to the whole one, and of the tokens per parameter that nearly all the table lies within.

    Args:
        sizes: `params`, `tokens` and `flops` of the table.
        cost: what a token costs.
        budget: FLOPs that no candidate exceeds.

    Raises:
        ValueError: the budget is no positive number.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"the budget of next runs is a positive number of FLOPs, not {budget!r}")
    ratio = sizes["tokens"] / sizes["params"]
    cheapest = min(max(budget / _SPAN, sizes["flops"].min()), budget / 10)
    level, ratio = np.meshgrid(
        np.geomspace(cheapest, budget, _LEVELS),
        np.geomspace(*np.quantile(ratio, [_RARE, 1 - _RARE]), _RATIOS),
        indexing="ij",
    )
    params = (level / (cost.k * ratio)) ** (1 / (1 + cost.g))  # C = k N^g r N
    frame = pd.DataFrame({"params": params.ravel(), "tokens": (ratio * params).ravel(), "flops": level.ravel()})
    inside = frame["params"] >= sizes["params"].min() / 2  # smaller models than were ever trained teach of themselves
    return frame[inside if inside.any() else slice(None)].reset_index(drop=True)


def check_candidates(source: runs.Source, cost: Compute) -> pd.DataFrame:
    """Candidates of one's own: a table with params and one of tokens / flops.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the table has no usable rows or lacks a column.
    """
    frame = source.frame if isinstance(source, runs.Table) else source
    frame = frame if isinstance(frame, pd.DataFrame) else runs.read(frame)
    counted = "flops" in frame
    frame = runs.check(frame, needs=("params", "tokens", "flops"), minimum=1).frame
    return frame if counted else frame.assign(flops=cost.flops(frame["params"], frame["tokens"]))


def choose(
    boot: Bootstrap,
    candidates: pd.DataFrame,
    target: Quantity | None,
    *,
    runs: int,
    budget: float,
    at: Mapping[str, float] | None = None,
) -> NextRuns:
    """The runs of at most a budget after which a quantity is known best.

    Two greedy choices, by what is gained and by what is gained per FLOP, are each improved by exchanging single runs
    until nothing is gained (Fedorov 1972), and the better is kept. A candidate may be chosen more than once.

    Args:
        boot: the fit and its resamples.
        candidates: columns the law reads, and `flops`.
        target: what should become surer; None for all parameters together.
        runs: the most runs to choose.
        budget: the most FLOPs they cost together.
        at: values of columns that the candidates do not have.

    Raises:
        ValueError: no candidate is within the budget, one lacks a column, or the target is not finite.
    """
    law = boot.fit.law
    if runs < 1:
        raise ValueError(f"choose at least one run, not {runs}")
    affordable = candidates[candidates["flops"] <= budget].reset_index(drop=True)
    if affordable.empty:
        raise ValueError(
            f"no candidate costs {budget:.3g} FLOPs or less; the cheapest costs {candidates['flops'].min():.3g}"
        )
    columns = {name: affordable[name].to_numpy(np.float64) for name in law.columns if name in affordable}
    columns |= {name: np.full(len(affordable), value) for name, value in (at or {}).items()}
    if "unique_tokens" in law.columns:
        columns.setdefault("unique_tokens", columns["tokens"])
    wanted = _target_draws(boot, target)
    losses = np.log(boot.draws(columns))
    usable = np.isfinite(losses).all(axis=0)
    affordable, losses = affordable[usable].reset_index(drop=True), losses[:, usable]
    noise = _noise(boot)
    state = _State(wanted, losses, noise, affordable["flops"].to_numpy(np.float64), budget, runs)
    designs = [state.improve(state.greedy(power)) for power in (0.0, 1.0)]
    design = state.order(min(designs, key=state.variance))
    before = None if target is None else boot.quantity(target)
    chosen, start = [], state.variance([])
    for i, row in enumerate(design, 1):
        left = float(np.exp((state.variance(design[:i]) - start) / 2))
        at_row = affordable.iloc[row]
        after = None if before is None else _shrunk(before, left, positive=target.positive)
        chosen.append(Chosen(*(float(at_row[name]) for name in ("params", "tokens", "flops")), after, left))
    name = "the parameters" if target is None else target.name
    ratio = (affordable["tokens"] / affordable["params"]).to_numpy()
    edge = int(np.sum((ratio[design] < ratio.min() * 1.001) | (ratio[design] > ratio.max() / 1.001)))
    return NextRuns(name, before, tuple(chosen), budget, len(affordable), noise, boot.fit.sigma, edge)


@dataclass(frozen=True)
class _State:
    """Draws of the target and of every candidate's log loss, and what candidates cost."""

    target: np.ndarray
    losses: np.ndarray
    noise: float
    flops: np.ndarray
    budget: float
    runs: int

    def __post_init__(self):
        together = _pulled_in(np.concatenate([self.target, self.losses], axis=1))
        size = together.std(axis=0)
        wide = self.target.shape[1]
        scaled = np.where(np.arange(len(size)) < wide, np.where(size > 0, size, 1.0), 1.0)
        object.__setattr__(self, "_covariance", np.cov(together / scaled, rowvar=False))

    def variance(self, design: list[int]) -> float:
        """Log of the target's variance after a design; for several targets the mean of their joint one."""
        wide, matrix = self.target.shape[1], self._covariance
        rows = wide + np.array(design, int)
        left = matrix[:wide, :wide]
        if len(design):
            inner = matrix[np.ix_(rows, rows)] + self.noise**2 * np.eye(len(rows))
            left = left - matrix[:wide, rows] @ np.linalg.solve(inner, matrix[rows, :wide])
        return float(np.linalg.slogdet(left)[1] / wide)

    def cost(self, design: list[int]) -> float:
        return float(self.flops[design].sum()) if design else 0.0

    def _gains(self, design: list[int], limit: float) -> np.ndarray:
        """What each candidate takes off the log variance on top of a design; minus infinity where it costs too much."""
        now = self.variance(design)
        return np.array(
            [
                now - self.variance([*design, i]) if cost <= limit * (1 + 1e-9) else -np.inf
                for i, cost in enumerate(self.flops)
            ]
        )

    def greedy(self, power: float) -> list[int]:
        design: list[int] = []
        while len(design) < self.runs:
            gains = self._gains(design, self.budget - self.cost(design)) / (self.flops / self.budget) ** power
            best = int(np.argmax(gains))
            if not gains[best] > 0:
                break
            design.append(best)
        return design

    def improve(self, design: list[int]) -> list[int]:
        for _ in range(_SWEEPS):
            before = self.variance(design)
            for i in range(len(design)):
                others = design[:i] + design[i + 1 :]
                gains = self._gains(others, self.budget - self.cost(others))
                if np.isfinite(gains).any():
                    design = [*design[:i], int(np.argmax(gains)), *design[i + 1 :]]
            if before - self.variance(design) < 1e-6:
                break
        return design

    def order(self, design: list[int]) -> list[int]:
        """The same runs, the one that gains most per FLOP first."""
        done, waiting = [], list(design)
        while waiting:
            now = self.variance(done)
            best = max(waiting, key=lambda i: (now - self.variance([*done, i])) / self.flops[i])
            waiting.remove(best)
            done.append(best)
        return done


def _pulled_in(draws: Float[np.ndarray, "draws columns"]) -> Float[np.ndarray, "draws columns"]:
    """Draws with the furthest of each column pulled in, so that a few refits gone astray do not decide."""
    low, high = np.nanquantile(draws, [_TAIL, 1 - _TAIL], axis=0)
    return np.clip(np.where(np.isfinite(draws), draws, np.nanmedian(draws, axis=0)), low, high)


def _target_draws(boot: Bootstrap, target: Quantity | None) -> Float[np.ndarray, "draws targets"]:
    if target is None:
        return solver.encode(boot.fit.law, boot.samples)
    values = target(boot.by_name)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(values) if target.positive else np.asarray(values, np.float64)
    if np.isfinite(values).mean() < 0.5:
        raise ValueError(f"{target.name} is not finite in most resamples of law {boot.fit.law.name!r}")
    return np.broadcast_to(values, (len(boot.samples),))[:, None].astype(np.float64)


def _noise(boot: Bootstrap) -> float:
    """Noise that one more run carries into the fit, read off the draws.

    If a fit of p parameters has covariance s^2 (J'J)^-1, the variances of its predictions at its own rows sum to p s^2.
    """
    logs = _pulled_in(np.log(boot.draws(boot.fit.columns)))
    return float(np.sqrt(np.sum(np.var(logs, axis=0)) / len(boot.fit.parameters)))


def _shrunk(estimate: Estimate, left: float, *, positive: bool) -> Estimate:
    """An interval about the same value with a part of its width; in the logarithm where it was made there."""
    value, low, high = (np.log(x) if positive else x for x in (estimate.value, estimate.low, estimate.high))
    low, high = value - left * (value - low), value + left * (high - value)
    low, high = (np.exp(x) if positive else x for x in (low, high))
    return Estimate(estimate.value, float(low), float(high))
