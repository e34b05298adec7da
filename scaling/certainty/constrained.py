"""The lowest objective of a fit while a quantity of its parameters is held at a value, for many values at once.

The quantity may be anything that can be evaluated; its derivatives are differences. Iterates are feasible throughout:
a step in the plane that leaves the quantity as it is to first order, then Newton's method back onto its value.
"""

from collections.abc import Sequence

import numpy as np

from scaling.fitting import solver
from scaling.fitting.differences import log_prediction, sensitivity
from scaling.fitting.fit import Fit
from scaling.fitting.quantities import Quantity

HELD = 1e-8
"""How exactly a quantity is held, relative to its value (absolute below one, and in the logarithm if positive)."""

_ITERATIONS = 60
_STEP = 1e-4  # of differences of a quantity, which may itself be a numeric optimum and only so exact


class Held:
    """The objective of a fit and the quantities that are held, for a batch of problems.

    Throughout, `theta` are parameters in the solver's coordinates, one row a problem; `which` says which quantity each
    problem holds; `value` at what, in the logarithm where the quantity is positive.
    """

    def __init__(self, fit: Fit, quantities: Sequence[Quantity]):
        self.fit, self.law, self.quantities = fit, fit.law, quantities
        self.delta = fit.objective.threshold
        self.target = np.log(fit.predict(fit.columns)) + fit.residuals
        self.low, self.high = solver.limits(fit.law)

    def objective(self, theta: np.ndarray) -> np.ndarray:
        """The fit's objective, infinite where the law has no value."""
        size = np.abs(self.target - log_prediction(self.law, self.fit.columns, theta))
        huber = np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2))
        value = huber @ self.fit.weights
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
        step = _STEP * np.maximum(1.0, np.abs(theta))
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
            wrong = np.flatnonzero(np.abs(off) > HELD * np.maximum(1.0, np.abs(value)))
            if not len(wrong):
                break
            slope = self.slope(theta[wrong], which[wrong])
            direction = _solve(matrix[wrong], slope, free=free[wrong])
            moved = theta[wrong] + direction * (off[wrong] / np.sum(direction * slope, axis=1))[:, None]
            theta[wrong] = np.clip(moved, self.low, self.high)
            free[wrong] &= moved == theta[wrong]
            off[wrong] = value[wrong] - self.held(theta[wrong], which[wrong])
        right = np.abs(off) <= HELD * np.maximum(1.0, np.abs(value))
        return np.where(right[:, None], theta, np.nan)

    def models(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradient, reweighted Gauss-Newton matrix, and the matrix of the rows within delta alone."""
        predicted, jacobian = sensitivity(self.law, self.fit.columns, theta)
        residual = self.target - predicted
        size = np.abs(residual)
        inside = self.fit.weights * (size <= self.delta)
        weight = self.fit.weights * np.where(size <= self.delta, 1.0, self.delta / np.maximum(size, self.delta))
        gradient = -np.einsum("br,brp->bp", weight * residual, jacobian)
        turned = np.swapaxes(jacobian, 1, 2)
        return gradient, (turned * weight[:, None, :]) @ jacobian, (turned * inside[:, None, :]) @ jacobian

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
        for _ in range(_ITERATIONS):
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
