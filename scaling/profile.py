"""Profile likelihood: how much worse the best fit becomes when one quantity is held away from its optimum.

Bootstrap and Laplace intervals describe a neighbourhood of the optimum; a profile walks away from it, refitting
everything else at each value, until the fit is worse than noise can explain. Where that never happens the table does
not determine the quantity, and the profile says so: its interval is open.

The Huber objective is no log-likelihood, so its rise is compared with E[psi^2] / (2 E[psi']) t^2 instead of half of
chi-square (see `covariance`); for least squares that is the F test on the residual sum of squares.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from jaxtyping import Float, Shaped

from scaling import solver
from scaling.covariance import Covariance, bounds, covariance, log_prediction, sensitivity
from scaling.estimate import LEVEL, Estimate
from scaling.fitting import Fit
from scaling.quantities import Quantity, parameter

_HELD = 1e-8  # a quantity is held to its value this exactly, relative (absolute below one, or in the logarithm)
_SOLVED = 1e-7  # of the threshold: what a further step may still promise
_STEPS = 5  # from the optimum to the threshold, where the profile is quadratic
_GROWTH = 3.0  # largest growth of a step, which is how an open profile reaches its limit quickly
_POINTS = 40  # on a side
_REFINED = 2e-3  # of the threshold's root: how exactly the ends of an interval are found
_REACH = np.log(1e6)  # how far from the optimum a positive quantity is searched


class End(Enum):
    """How a side of a profile ends."""

    CROSSED = "crossed"
    """The fit became worse than noise explains: the interval ends here."""
    BOUND = "bound"
    """The bound of the parameter's range was reached first: the interval is open."""
    SEARCHED = "searched"
    """The limit of the search was reached first, or nothing beyond could be fitted: the interval is open."""


@dataclass(frozen=True)
class Profile:
    """The rise of the objective along one quantity, everything else refitted.

    Attributes:
        quantity: what was held fixed.
        values: where, ascending; the optimum is among them.
        increase: objective less its minimum, at each value.
        threshold: the increase that ends the interval.
        estimate: value at the optimum and its interval; an open side is the bound of the range, or 0 or infinity.
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
        low, high, name = *(f"{end:.4g}" for end in (self.values[0], self.values[-1])), self.quantity.name
        if self.open_low and self.open_high:
            return f"any {name} from below {low} to above {high} fits as well"
        if self.open_low:
            return f"any {name} up to {self.estimate.high:.4g} fits as well, down to {low} at least"
        if self.open_high:
            return f"any {name} from {self.estimate.low:.4g} to above {high} fits as well"
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
) -> Profile:
    """Profile one quantity of a fit.

    Args:
        fit: the fit, at its optimum.
        quantity: anything its parameters determine, or the name of a parameter.
        level: probability the interval claims.
        clusters: as for `covariance`: calibrates the threshold for runs that share their noise.

    Returns:
        The profile, from one end of the interval to the other, or as far as the search goes: to the bounds of a
        parameter's range, and to a factor of a million for positive quantities.

    Raises:
        ValueError: the quantity has no value at the optimum, or no such parameter.
    """
    return profiles(fit, (quantity,), level=level, clusters=clusters)[0]


def profiles(
    fit: Fit,
    quantities: Sequence[Quantity | str] | None = None,
    *,
    level: float = LEVEL,
    clusters: Shaped[np.ndarray, " rows"] | None = None,
) -> tuple[Profile, ...]:
    """Profile several quantities, by default every parameter, at once; arguments as for `profile`."""
    quantities = fit.law.names if quantities is None else quantities
    quantities = tuple(parameter(fit.law, each) if isinstance(each, str) else each for each in quantities)
    if not quantities:
        return ()
    problem, found = _Problem(fit, quantities), covariance(fit, clusters=clusters)
    with np.errstate(all="ignore"):
        sides = _sides(problem, found, found.quantile(level))
        _walk(problem, sides)
    pairs = zip(quantities, sides[::2], sides[1::2], strict=True)
    return tuple(_assemble(fit, quantity, below, above, level) for quantity, below, above in pairs)


class _Problem:
    """The objective of a fit and the quantities that are held, for a batch of parameter vectors."""

    def __init__(self, fit: Fit, quantities: Sequence[Quantity]):
        self.fit, self.law, self.quantities = fit, fit.law, quantities
        self.delta = fit.objective.threshold
        self.target = np.log(fit.predict(fit.columns)) + fit.residuals
        self.low, self.high = bounds(fit.law)

    def objective(self, theta: np.ndarray) -> np.ndarray:
        size = np.abs(self.target - log_prediction(self.law, self.fit.columns, theta))
        value = np.sum(np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2)), axis=1)
        return np.where(np.isfinite(value), value, np.inf)

    def held(self, theta: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Each problem's quantity, in the logarithm where it is positive; theta is batch x any x parameters."""
        found = np.empty(theta.shape[:-1])
        for i in np.unique(which):
            mine = which == i
            values = solver.decode(self.law, theta[mine])
            parameters = {name: values[..., j] for j, name in enumerate(self.law.names)}
            value = self.quantities[i](parameters)
            found[mine] = np.log(value) if self.quantities[i].positive else value
        return found

    def slope(self, theta: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Derivatives of each problem's quantity; a wide step, since a numeric optimum is only so exact."""
        step = 1e-4 * np.maximum(1.0, np.abs(theta))
        ends = np.minimum(theta + step, self.high), np.maximum(theta - step, self.low)
        moved = []
        for end in ends:
            points = np.repeat(theta[:, None, :], theta.shape[1], axis=1)
            index = np.arange(theta.shape[1])
            points[:, index, index] = end
            moved.append(self.held(points, which))
        return (moved[0] - moved[1]) / np.maximum(ends[0] - ends[1], 1e-300)

    def restore(self, theta: np.ndarray, which: np.ndarray, value: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Newton's method along matrix^-1 slope until each quantity has its value; nan where it cannot."""
        theta, off = theta.copy(), value - self.held(theta, which)
        free = np.ones_like(theta, dtype=bool)
        for _ in range(12):
            wrong = np.flatnonzero(np.abs(off) > _HELD * np.maximum(1.0, np.abs(value)))
            if not len(wrong):
                break
            slope = self.slope(theta[wrong], which[wrong])
            direction = _solve(matrix[wrong], slope, free=free[wrong])
            moved = theta[wrong] + direction * (off[wrong] / np.sum(direction * slope, axis=1))[:, None]
            theta[wrong] = np.clip(moved, self.low, self.high)
            free[wrong] &= moved == theta[wrong]
            off[wrong] = value[wrong] - self.held(theta[wrong], which[wrong])
        right = np.abs(off) <= _HELD * np.maximum(1.0, np.abs(value))
        return np.where(right[:, None], theta, np.nan)

    def models(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradient, reweighted Gauss-Newton matrix, and the matrix of the rows within delta alone."""
        predicted, jacobian = sensitivity(self.law, self.fit.columns, theta)
        residual = self.target - predicted
        size = np.abs(residual)
        weight = np.where(size <= self.delta, 1.0, self.delta / np.maximum(size, self.delta))
        gradient = -np.einsum("br,brp->bp", weight * residual, jacobian)
        turned = np.swapaxes(jacobian, 1, 2)
        return (
            gradient,
            (turned * weight[:, None, :]) @ jacobian,
            (turned * (size <= self.delta)[:, None, :]) @ jacobian,
        )

    def minimise(
        self, theta: np.ndarray, which: np.ndarray, value: np.ndarray, *, enough: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lowest objective with each quantity at its value, from feasible starts; every step stays feasible.

        Levenberg-Marquardt steps in the plane the quantity's slope leaves, then back onto its value. The better of two
        is taken: reweighted Gauss-Newton, and the rows within delta alone, which ends where reweighting crawls.
        """
        theta, lowest = theta.copy(), self.objective(theta)
        damping = np.full(len(theta), 1e-4)
        live = np.isfinite(lowest)
        for _ in range(60):
            now = np.flatnonzero(live)
            if not len(now):
                break
            here = theta[now]
            gradient, gauss, inside = self.models(here)
            slope = self.slope(here, which[now])
            free = _free(here, self.low, self.high, gradient, gauss, slope)
            lagrangian, step = _tangent(gauss, gradient, slope, free, np.full(len(now), 1e-12))
            promise = np.abs(np.sum(step * lagrangian, axis=1)) / 2
            best, reached = here, lowest[now]
            for matrix in (gauss, inside + 1e-9 * gauss):
                _, step = _tangent(matrix, gradient, slope, free, damping[now])
                moved = np.clip(here + step, self.low, self.high)
                moved = self.restore(moved, which[now], value[now], gauss)
                candidate = self.objective(moved)
                better = candidate < reached
                best, reached = np.where(better[:, None], moved, best), np.where(better, candidate, reached)
            downhill = reached < lowest[now]
            theta[now], lowest[now] = best, reached
            damping[now] = np.clip(np.where(downhill, damping[now] / 8, damping[now] * 8), 1e-12, 1e9)
            live[now] = (promise > enough[now]) & (damping[now] < 1e9)
        return theta, lowest


def _solve(matrix: np.ndarray, vector: np.ndarray, *, free: np.ndarray, damping: np.ndarray | float = 1e-12):
    """(matrix + damping x its diagonal)^-1 vector over the free parameters, zero for the others."""
    size = np.sqrt(np.einsum("bii->bi", matrix))
    size = np.where(size > 0, size, 1.0)
    both = free[:, :, None] & free[:, None, :]
    eye = np.eye(matrix.shape[1])
    scaled = np.where(both, matrix / (size[:, :, None] * size[:, None, :]), eye)
    scaled = np.where(np.isfinite(scaled), scaled, eye) + np.broadcast_to(damping, len(size))[:, None, None] * eye
    right = np.where(free, vector / size, 0.0)
    return np.where(free, np.linalg.solve(scaled, right[:, :, None])[:, :, 0] / size, 0.0)


def _tangent(matrix, gradient, slope, free, damping) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the Lagrangian, and the step that lowers the quadratic model and leaves the quantity as it is."""
    down = _solve(matrix, gradient, free=free, damping=damping)
    across = _solve(matrix, slope, free=free, damping=damping)
    multiplier = -np.sum(slope * down, axis=1) / np.sum(slope * across, axis=1)
    multiplier = np.where(np.isfinite(multiplier), multiplier, 0.0)[:, None]
    return np.where(free, gradient + multiplier * slope, 0.0), -(down + multiplier * across)


def _free(theta, low, high, gradient, matrix, slope) -> np.ndarray:
    """Parameters that are not held at a bound by the gradient of the Lagrangian."""
    every = np.ones_like(theta, dtype=bool)
    lagrangian, _ = _tangent(matrix, gradient, slope, every, 1e-12)
    return ~(((theta <= low) & (lagrangian > 0)) | ((theta >= high) & (lagrangian < 0)))


@dataclass
class _Side:
    """One side of one profile, under way from the optimum outwards, then back to where it crosses."""

    which: int
    sign: float
    limit: float
    bounded: bool
    step: float
    threshold: float
    points: list[tuple[float, float, np.ndarray]]  # value, increase and parameters, in the order they were solved
    end: End | None = None
    inside: int = 0  # the farthest point below the threshold
    outside: int | None = None  # the nearest above, once there is one
    failures: int = 0

    def root(self, point: int) -> float:
        """Signed root of the increase, one at the threshold: a straight line where the profile is quadratic."""
        share = self.points[point][1] / self.threshold
        return float(np.sign(share) * np.sqrt(abs(share)))

    def next(self) -> float:
        """The value to solve next."""
        near = self.points[self.inside][0]
        if self.outside is None:
            return self.sign * min(self.sign * (near + self.sign * self.step), self.sign * self.limit)
        low, high = self.root(self.inside), self.root(self.outside)
        return near + (self.points[self.outside][0] - near) * float(np.clip((1 - low) / (high - low), 0.05, 0.95))

    def guess(self, value: float) -> np.ndarray:
        """Parameters to start from: on the line through the two points at hand."""
        value_1, _, theta_1 = self.points[self.inside]
        value_2, _, theta_2 = self.points[max(self.inside - 1, 0) if self.outside is None else self.outside]
        return theta_1 + (theta_1 - theta_2) * ((value - value_1) / (value_1 - value_2) if value_1 != value_2 else 0.0)

    def take(self, value: float, increase: float, theta: np.ndarray) -> None:
        """A solved point, or one that has no solution."""
        if not np.isfinite(increase):
            self.failures += 1
            self.step = abs(value - self.points[self.inside][0]) / 4
            self.limit = value if self.outside is None else self.limit
            self.end = End.SEARCHED if self.failures > 6 else None
            return
        self.points.append((value, increase, theta))
        here = len(self.points) - 1
        root = self.root(here)
        if abs(root - 1) <= _REFINED:
            self.inside, self.end = here, End.CROSSED
        elif root > 1:
            self.outside = here
        else:
            slope = (root - self.root(self.inside)) / abs(value - self.points[self.inside][0])
            wanted = 1 / _STEPS / slope if slope > 0 else np.inf
            self.step = float(np.clip(wanted, self.step / _GROWTH, self.step * _GROWTH))
            self.inside = here
            if self.outside is None and value == self.limit:
                self.end = End.BOUND if self.bounded and not self.failures else End.SEARCHED
        if self.end is None and here >= _POINTS:
            self.end = End.CROSSED if self.outside else End.SEARCHED


def _sides(problem: _Problem, covariance: Covariance, root: float) -> list[_Side]:
    """Two sides of every quantity, at the optimum."""
    fit, sides = problem.fit, []
    theta = fit.theta
    for which, quantity in enumerate(problem.quantities):
        index = np.array([which])
        centre = float(problem.held(theta[None], index)[0])
        if not np.isfinite(centre):
            raise ValueError(f"{quantity.name} has no value at the optimum of law {fit.law.name!r}, nor a profile")
        slope = problem.slope(theta[None], index)[0]
        spread = covariance.deviation(slope) * root
        spread = spread if np.isfinite(spread) and spread > 0 else 1.0
        for sign, end in ((-1.0, "low"), (1.0, "high")):
            limit, bound = centre + sign * (_REACH if quantity.positive else 100 * spread), sign * np.inf
            if quantity.name in fit.law.names:
                bound = getattr(fit.law.parameters[fit.law.names.index(quantity.name)], end)
                bound = float(np.log(bound)) if quantity.positive else bound
            bounded = sign * bound <= sign * limit
            limit = bound if bounded else limit
            side = _Side(
                which=which,
                sign=sign,
                limit=limit,
                bounded=bool(bounded),
                step=min(spread, abs(limit - centre)) / _STEPS,
                threshold=covariance.rise(slope) * root**2 / 2,
                points=[(centre, 0.0, theta)],
            )
            side.end = End.BOUND if limit == centre else None
            sides.append(side)
    return sides


def _walk(problem: _Problem, sides: Sequence[_Side]) -> None:
    """Every side that has not ended, one value further, all at once, until all have ended."""
    minimum = problem.objective(problem.fit.theta[None])[0]
    while live := [side for side in sides if side.end is None]:
        which = np.array([side.which for side in live])
        value = np.array([side.next() for side in live])
        last = np.stack([side.points[side.inside][2] for side in live])
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
            side.take(float(each), float(objective - minimum), where)


def _assemble(fit: Fit, quantity: Quantity, below: _Side, above: _Side, level: float) -> Profile:
    """Both sides as one profile."""
    points = sorted(below.points[:0:-1] + above.points, key=lambda point: point[0])
    values, increase, theta = (np.array(part) for part in zip(*points, strict=True))
    ends = []
    for side, far in ((below, 0.0 if quantity.positive else -np.inf), (above, np.inf)):
        last = side.points[side.inside][0] if side.end is End.CROSSED else side.limit
        last = np.exp(last) if quantity.positive else last
        ends.append(far if side.end is End.SEARCHED else float(last))
    centre = below.points[0][0]
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
