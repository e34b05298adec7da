"""Profile likelihood: how much worse the best fit becomes when one quantity is held away from its optimum.

Bootstrap and Laplace intervals describe a neighbourhood of the optimum; a profile walks away from it, refitting
everything else at each value, until the fit is worse than noise can explain. Where that never happens the table does
not determine the quantity, and the profile says so: its interval is open.

The Huber objective is no log-likelihood, so its rise is compared with E[psi^2] / (2 E[psi']) t^2 instead of half of
chi-square (see `covariance`); for least squares that is the F test on the residual sum of squares.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from scaling.certainty.constrained import Held
from scaling.certainty.covariance import LARGE, Covariance, Noise, covariance
from scaling.estimate import LEVEL, Estimate
from scaling.fitting import solver
from scaling.fitting.fit import Fit
from scaling.fitting.quantities import Quantity, parameter

_SOLVED = 1e-7  # of the threshold: what a further step may still promise
_STEPS = 5  # from the optimum to the threshold, where the profile is quadratic
_GROWTH = 3.0  # largest growth of a step, which is how an open profile reaches its limit quickly
_EXACT = 1e-9  # log residuals below this are rounding: no table is more exact
_POINTS = 40  # on a side
_REFINED = 2e-3  # of the threshold's root: how exactly the ends of an interval are found
_REACH = np.log(1e6)  # how far from the optimum a positive quantity is searched that is not a parameter


class End(Enum):
    """How a side of a profile ends."""

    CROSSED = "crossed"
    """The fit became worse than noise explains: the interval ends here."""
    BOUND = "bound"
    """The bound of the parameter's range was reached first: the interval is open."""
    SEARCHED = "searched"
    """The limit of the search was reached first: the interval is open."""
    LOST = "lost"
    """Nothing further could be fitted, which happens far from a poor optimum: the interval is open."""


@dataclass(frozen=True)
class Profile:
    """The rise of the objective along one quantity, everything else refitted.

    Attributes:
        quantity: what was held fixed.
        values: where, ascending; the optimum is among them.
        increase: objective less its minimum, at each value.
        threshold: the increase that ends the interval.
        estimate: value at the optimum and its interval; an open side is the bound of a parameter's range, or 0 or
            infinity.
        below: how the lower side ends.
        above: how the upper side ends.
        parameters: the law's parameters along the profile, in the order of `fit.law.names`.
        fit: what was profiled.
        level: probability the interval claims.
    """

    quantity: Quantity
    values: Float[np.ndarray, " points"] = field(repr=False)
    increase: Float[np.ndarray, " points"] = field(repr=False)
    threshold: float
    estimate: Estimate
    below: End
    above: End
    parameters: Float[np.ndarray, "points parameters"] = field(repr=False)
    fit: Fit = field(repr=False)
    level: float = LEVEL

    @property
    def interval(self) -> tuple[float, float]:
        """Its ends."""
        return self.estimate.low, self.estimate.high

    @property
    def open_low(self) -> bool:
        """No lower end was found."""
        return self.below is not End.CROSSED

    @property
    def open_high(self) -> bool:
        """No upper end was found."""
        return self.above is not End.CROSSED

    @property
    def method(self) -> str:
        """The interval in words."""
        return f"profile likelihood, {self.level:.0%}"

    @property
    def improved(self) -> bool:
        """A lower objective than the fit's was met on the way: the fit is not the optimum."""
        return bool(self.increase.min() < -0.01 * self.threshold)

    def words(self) -> str:
        """The interval as a sentence, open sides said so."""
        name, (low, high) = self.quantity.name, (f"{end:.4g}" for end in (self.values[0], self.values[-1]))
        bounded = not self.quantity.positive  # a positive quantity is bounded far beyond anything a reader cares for
        lowest = f"its bound {low}" if self.below is End.BOUND and bounded else f"below {low}"
        highest = f"its bound {high}" if self.above is End.BOUND and bounded else f"above {high}"
        if End.LOST in (self.below, self.above):
            return f"any {name} from {low} to {high} fits as well, and the search was lost beyond"
        if self.open_low and self.open_high:
            return f"any {name} from {lowest} to {highest} fits as well"
        if self.open_low:
            return f"any {name} from {lowest} to {self.estimate.high:.4g} fits as well"
        if self.open_high:
            return f"any {name} from {self.estimate.low:.4g} to {highest} fits as well"
        return f"{name} = {self.estimate.value:.4g} ({self.estimate.low:.4g} to {self.estimate.high:.4g})"

    def __str__(self) -> str:
        rows = [f"profile of {self.quantity.name}: {self.quantity.text}", self.words()]
        rows += [f"{self.quantity.name:>14}  increase / threshold"]
        share = self.increase / self.threshold
        rows += [f"{value:14.6g}  {part:8.3f}" for value, part in zip(self.values, share, strict=True)]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        from html import escape

        share = self.increase / self.threshold
        rows = "".join(f"<tr><td>{v:.6g}</td><td>{s:.3f}</td></tr>" for v, s in zip(self.values, share, strict=True))
        name = escape(self.quantity.name)
        return (
            f"<p>{escape(self.words())}</p><table><thead><tr><th>{name}</th><th>increase / threshold</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def to_dict(self) -> dict:
        """Plain types, for JSON; an infinite end is None."""
        finite = {key: value if np.isfinite(value) else None for key, value in self.estimate.to_dict().items()}
        return {
            "quantity": self.quantity.name,
            "text": self.quantity.text,
            **finite,
            "below": self.below.value,
            "above": self.above.value,
            "values": self.values.tolist(),
            "increase": self.increase.tolist(),
            "threshold": self.threshold,
            "parameters": {n: self.parameters[:, i].tolist() for i, n in enumerate(self.fit.law.names)},
            "method": self.method,
        }


def profile(
    fit: Fit,
    quantity: Quantity | str,
    *,
    level: float = LEVEL,
    clusters: Shaped[np.ndarray, " rows"] | None = None,
    noise: Noise | None = None,
) -> Profile:
    """Profile one quantity of a fit.

    Args:
        fit: the fit, at its optimum.
        quantity: anything its parameters determine, or the name of a parameter.
        level: probability the interval claims.
        clusters: as for `covariance`: calibrates the threshold for runs that share their noise.
        noise: as for `covariance`.

    Returns:
        The profile, from one end of the interval to the other, or as far as the search goes: to the bounds of a
        parameter's range, a factor of a million for other positive quantities, 100 half-widths for the rest.

    Raises:
        ValueError: the quantity has no value at the optimum, or no such parameter.
    """
    return profiles(fit, (quantity,), level=level, clusters=clusters, noise=noise)[0]


def profiles(
    fit: Fit,
    quantities: Sequence[Quantity | str] | None = None,
    *,
    level: float = LEVEL,
    clusters: Shaped[np.ndarray, " rows"] | None = None,
    noise: Noise | None = None,
) -> tuple[Profile, ...]:
    """Profile several quantities, by default every parameter, at once; arguments as for `profile`.

    A table of more than 8,192 runs is profiled on that many of them, evenly spaced: what they determine, all do.
    """
    quantities = fit.law.names if quantities is None else quantities
    quantities = tuple(parameter(fit.law, each) if isinstance(each, str) else each for each in quantities)
    if not quantities:
        return ()
    if len(fit.residuals) > LARGE:
        fit, clusters = _part(fit, clusters)
    problem, found = Held(fit, quantities), covariance(fit, clusters=clusters, noise=noise)
    with np.errstate(all="ignore"):
        sides = _sides(problem, found, found.quantile(level))
        _walk(problem, sides)
    pairs = zip(quantities, sides[::2], sides[1::2], strict=True)
    return tuple(_assemble(fit, quantity, below, above, level) for quantity, below, above in pairs)


def _part(fit: Fit, clusters: np.ndarray | None) -> tuple[Fit, np.ndarray | None]:
    """The fit to evenly spaced rows of its table, from where it stands."""
    rows = np.linspace(0, len(fit.residuals) - 1, LARGE).astype(int)
    columns = {name: each[rows] for name, each in fit.columns.items()}
    target = np.log(fit.predict(columns)) + fit.residuals[rows]
    weights = fit.weights[rows] / fit.weights[rows].mean()
    delta = fit.objective.threshold
    solution = solver.minimise(
        fit.law, columns, theta=fit.theta[None], target=target[None], weights=weights[None], delta=delta
    )
    parameters = dict(zip(fit.law.names, map(float, solver.decode(fit.law, solution.theta[0])), strict=True))
    part = replace(
        fit,
        parameters=parameters,
        value=float(solution.value[0]),
        residuals=target - np.log(fit.law(columns, parameters)),
        columns=columns,
        weights=weights,
    )
    return part, None if clusters is None else np.asarray(clusters)[rows]


class _Point(NamedTuple):
    """A value that was held (in the logarithm if positive), what it cost, and the solver's coordinates there."""

    value: float
    increase: float
    theta: np.ndarray


@dataclass
class _Side:
    """One side of one profile, under way from the optimum outwards, then back to where it crosses."""

    which: int
    sign: float
    edge: float  # the farthest the quantity can be
    limit: float  # the farthest it is searched
    step: float
    threshold: float
    points: list[_Point]
    end: End | None = None
    outside: _Point | None = None  # the nearest above the threshold, once there is one
    setbacks: int = 0

    @property
    def inside(self) -> _Point:
        """The farthest point below the threshold."""
        return self.points[-1]

    def root(self, point: _Point) -> float:
        """Signed root of the increase, one at the threshold: a straight line where the profile is quadratic."""
        share = point.increase / self.threshold
        return float(np.sign(share) * np.sqrt(abs(share)))

    def next(self) -> float:
        """The value to solve next."""
        near = self.inside.value
        if self.outside is None:
            return self.sign * min(self.sign * (near + self.sign * self.step), self.sign * self.limit)
        low, high = self.root(self.inside), self.root(self.outside)
        return near + (self.outside.value - near) * float(np.clip((1 - low) / (high - low), 0.05, 0.95))

    def guess(self, value: float) -> np.ndarray:
        """Parameters to start from: on the line through the two points at hand."""
        one, two = self.inside, self.outside or self.points[max(len(self.points) - 2, 0)]
        share = (value - one.value) / (one.value - two.value) if one.value != two.value else 0.0
        return one.theta + (one.theta - two.theta) * share

    def take(self, point: _Point) -> None:
        """A solved point, or one that has no solution."""
        if not np.isfinite(point.increase):
            self._set_back(point.value)
            return
        root, last = self.root(point), self.inside
        if abs(root - 1) <= _REFINED:
            self.points.append(point)
            self.end = End.CROSSED
        elif root > 1:
            self.outside = point
        else:
            slope = (root - self.root(last)) / max(abs(point.value - last.value), 1e-300)
            wanted = 1 / _STEPS / slope if slope > 0 else np.inf
            self.step = float(np.clip(wanted, self.step / _GROWTH, self.step * _GROWTH))
            self.points.append(point)
            if self.outside is None and point.value == self.limit:
                self.end = End.BOUND if self.limit == self.edge else End.SEARCHED
        if self.end is None and self.outside is not None and self._torn():
            # The point outside is a poorer local optimum: once more from here.
            self._set_back(self.outside.value)
            self.outside = None if self.end is None else self.outside
        if self.end is None and len(self.points) >= _POINTS:
            self.end = End.CROSSED if self.outside else End.SEARCHED

    def _torn(self) -> bool:
        """The profile jumps between the points inside and outside."""
        width = abs(self.outside.value - self.inside.value)
        return width < 0.01 * abs(self.outside.value - self.points[0].value) and (
            self.root(self.outside) - self.root(self.inside) > 0.1
        )

    def _set_back(self, value: float) -> None:
        """A shorter step, or the end after too many."""
        self.setbacks += 1
        self.step = abs(value - self.inside.value) / 4
        if self.setbacks > 6:
            self.end = End.CROSSED if self.outside else End.LOST


def _sides(problem: Held, covariance: Covariance, root: float) -> list[_Side]:
    """Two sides of every quantity, at the optimum."""
    fit, sides = problem.fit, []
    theta, least = fit.theta, float(_EXACT**2 * fit.weights.sum())
    for which, quantity in enumerate(problem.quantities):
        index = np.array([which])
        centre = float(problem.held(theta[None], index)[0])
        if not np.isfinite(centre):
            raise ValueError(f"{quantity.name} has no value at the optimum of law {fit.law.name!r}, nor a profile")
        slope = problem.slope(theta[None], index)[0]
        spread = covariance.deviation(slope) * root
        if not np.isfinite(spread) or spread < 1e-6 * max(1.0, abs(centre)):
            spread = 1.0  # the quadratic picture knows nothing of this quantity
        for sign, end in ((-1.0, "low"), (1.0, "high")):
            limit, edge = centre + sign * (_REACH if quantity.positive else 100 * spread), sign * np.inf
            if quantity.name in fit.law.names:
                bound = getattr(fit.law.parameters[fit.law.names.index(quantity.name)], end)
                limit = edge = float(np.log(bound) if quantity.positive else bound)
            side = _Side(
                which=which,
                sign=sign,
                edge=edge,
                limit=limit,
                step=min(spread, abs(limit - centre)) / _STEPS,
                threshold=max(covariance.rise(slope) * root**2 / 2, least),
                points=[_Point(centre, 0.0, theta)],
            )
            side.end = End.BOUND if limit == centre else None
            sides.append(side)
    return sides


def _walk(problem: Held, sides: Sequence[_Side]) -> None:
    """Every side that has not ended, one value further, all at once, until all have ended."""
    minimum = problem.objective(problem.fit.theta[None])[0]
    while live := [side for side in sides if side.end is None]:
        which = np.array([side.which for side in live])
        value = np.array([side.next() for side in live])
        last = np.stack([side.inside.theta for side in live])
        guess = np.stack([side.guess(each) for side, each in zip(live, value, strict=True)])
        _, matrix, _ = problem.models(last)
        starts = [
            problem.restore(np.clip(each, problem.low, problem.high), which, value, matrix) for each in (guess, last)
        ]
        reached = [problem.objective(each) for each in starts]
        start = np.where((reached[0] <= reached[1])[:, None], *starts)
        enough = np.array([side.threshold for side in live]) * _SOLVED
        theta, lowest = problem.minimise(start, which, value, enough=enough)
        for side, each, objective, where in zip(live, value, lowest, theta, strict=True):
            side.take(_Point(float(each), float(objective - minimum), where))


def _assemble(fit: Fit, quantity: Quantity, below: _Side, above: _Side, level: float) -> Profile:
    """Both sides as one profile."""
    beyond = [side.outside for side in (below, above) if side.outside is not None]
    points = sorted(below.points[:0:-1] + above.points + beyond, key=lambda point: point.value)
    values, increase, theta = (np.array(part) for part in zip(*points, strict=True))
    last = (side.inside.value if side.end is End.CROSSED else side.edge for side in (below, above))
    ends = (float(np.exp(each) if quantity.positive else each) for each in last)
    centre = below.points[0].value
    value = float(np.exp(centre) if quantity.positive else centre)
    return Profile(
        quantity=quantity,
        values=np.exp(values) if quantity.positive else values,
        increase=increase,
        threshold=below.threshold,
        estimate=Estimate(value, *ends),
        below=below.end,
        above=above.end,
        parameters=solver.decode(fit.law, theta),
        fit=fit,
        level=level,
    )
