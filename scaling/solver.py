"""The minimiser: many small robust regressions at once, in float64, each to its own optimum.

Problems share a law and its columns and differ in starting point, target and row weights, so the starts of one fit and
the resamples of a bootstrap are the same call. Each iteration tries two damped steps and keeps the better: iteratively
reweighted Gauss-Newton, which goes downhill from anywhere, and Newton on the exact Hessian, which ends quadratically
where the Huber loss is nearly an absolute value and reweighting crawls.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scaling.laws import Law, Scale

LEAST_SQUARES = 1e6
"""A Huber delta no log residual reaches."""

_CONVERGED = 1e-13  # share of the objective that a full step still promises
_ITERATIONS = 300
_SLOTS = 64
_DAMPING = (1e-15, 1e-2, 1e12)  # least, first, most


class Solution(NamedTuple):
    """Optima of a batch of problems.

    Attributes:
        theta: parameters as the solver moves them (logarithms where the scale is LOG).
        value: sum over rows of weight x Huber(log residual).
        slack: relative decrease of the objective that another step promises; tiny at an optimum.
    """

    theta: Float[np.ndarray, "batch parameters"]
    value: Float[np.ndarray, " batch"]
    slack: Float[np.ndarray, " batch"]


def encode(law: Law, values: Float[np.ndarray, "... parameters"]) -> Float[np.ndarray, "... parameters"]:
    """Parameters of a law -> the solver's coordinates."""
    values = np.asarray(values, dtype=np.float64)
    log = np.array([parameter.scale is Scale.LOG for parameter in law.parameters])
    return np.where(log, np.log(np.where(log, values, 1.0)), values)


def decode(law: Law, theta: Float[np.ndarray, "... parameters"]) -> Float[np.ndarray, "... parameters"]:
    """The solver's coordinates -> parameters of the law."""
    log = np.array([parameter.scale is Scale.LOG for parameter in law.parameters])
    return np.where(log, np.exp(np.where(log, theta, 0.0)), theta)


def _log_prediction(law: Law, theta: jax.Array, columns: dict[str, jax.Array]) -> jax.Array:
    values = {
        parameter.name: jnp.exp(theta[i]) if parameter.scale is Scale.LOG else theta[i]
        for i, parameter in enumerate(law.parameters)
    }
    return jnp.log(law.formula(**columns, **values))


def _objective(law: Law, theta, target, weights, columns, delta) -> jax.Array:
    residual = target - _log_prediction(law, theta, columns)
    size = jnp.abs(residual)
    huber = jnp.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))
    value = jnp.sum(jnp.where(weights > 0, weights * huber, 0.0))
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def _models(law: Law, theta, target, weights, columns, delta) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient, reweighted Gauss-Newton matrix and exact Hessian of the objective."""

    def predict(theta):
        return _log_prediction(law, theta, columns)

    residual = target - predict(theta)
    jacobian = jax.jacfwd(predict)(theta)
    size = jnp.abs(residual)
    reweighted = weights * jnp.where(size <= delta, 1.0, delta / jnp.maximum(size, delta))
    pull = reweighted * residual
    curvature = jax.hessian(lambda theta: pull @ predict(theta))(theta)
    gauss = (jacobian * reweighted[:, None]).T @ jacobian
    newton = (jacobian * (weights * (size <= delta))[:, None]).T @ jacobian - curvature
    return -pull @ jacobian, gauss, newton


@lru_cache(maxsize=64)
def _compiled(law: Law):
    """The two functions of a law the loop calls, over a batch of problems."""
    problem = (0, 0, 0, None, None)
    return tuple(
        jax.jit(jax.vmap(lambda *arguments, function=function: function(law, *arguments), in_axes=problem))
        for function in (_objective, _models)
    )


def _solve(matrix: np.ndarray, damping: np.ndarray, scale: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(matrix + damping x diag(scale^2))^-1 vector, equilibrated so that parameters of any magnitude mix.

    Elimination written out over the batch. A zero pivot gives a step that is not finite, and the caller refuses it like
    any step that does not go downhill.
    """
    size = scale.shape[1]
    rows = matrix / (scale[:, :, None] * scale[:, None, :]) + damping[:, None, None] * np.eye(size)
    right = vector / scale
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[:, j, i] / rows[:, i, i]
            rows[:, j] -= factor[:, None] * rows[:, i]
            right[:, j] -= factor * right[:, i]
    for i in reversed(range(size)):
        right[:, i] = (right[:, i] - np.sum(rows[:, i, i + 1 :] * right[:, i + 1 :], axis=1)) / rows[:, i, i]
    return right / scale


class _Slots:
    """A fixed number of problems under way; a finished one makes room for the next, so that none waits for another."""

    def __init__(self, law, columns, theta, target, weights, delta):
        self.law, self.columns, self.delta = law, columns, np.float64(delta)
        self.theta, self.target, self.weights = theta, target, weights
        self.low, self.high = (
            encode(law, np.array([getattr(p, end) for p in law.parameters])) for end in ("low", "high")
        )
        self.objective, self.models = _compiled(law)
        self.solution = Solution(*(np.full(shape, np.nan) for shape in (theta.shape, len(theta), len(theta))))

    def _rows(self, problems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(
            part[problems if len(part) > 1 else np.zeros_like(problems)] for part in (self.target, self.weights)
        )

    def run(self, slots: int) -> Solution:
        total = len(self.theta)
        problem = np.arange(slots) % total
        waiting = slots
        live = np.arange(slots) < total
        target, weights = self._rows(problem)
        theta = np.clip(self.theta[problem], self.low, self.high)
        value = np.asarray(self.objective(theta, target, weights, self.columns, self.delta))
        damping, age = np.full(slots, _DAMPING[1]), np.zeros(slots, int)
        while live.any():
            theta, value, damping, slack = self._step(theta, value, damping, target, weights)
            age += 1
            exact = value < 1e-26 * weights.sum(axis=1)  # nothing left but rounding
            slack = np.where(exact, 0.0, slack)
            ended = (slack <= _CONVERGED) | (age >= _ITERATIONS) | (damping >= _DAMPING[2]) | ~np.isfinite(value)
            done = np.flatnonzero(live & ended)
            if not len(done):
                continue
            for kept, part in zip(self.solution, (theta, value, slack), strict=True):
                kept[problem[done]] = part[done]
            fresh = done[: max(total - waiting, 0)]
            live[done[len(fresh) :]] = False
            if len(fresh):
                problem[fresh] = np.arange(waiting, waiting + len(fresh))
                waiting += len(fresh)
                target[fresh], weights[fresh] = self._rows(problem[fresh])
                theta[fresh] = np.clip(self.theta[problem[fresh]], self.low, self.high)
                started = np.asarray(self.objective(theta, target, weights, self.columns, self.delta))
                value[fresh], damping[fresh], age[fresh] = started[fresh], _DAMPING[1], 0
        return self.solution

    def _step(self, theta, value, damping, target, weights):
        rows = (target, weights, self.columns, self.delta)
        gradient, gauss, newton = (np.array(part) for part in self.models(theta, *rows))
        free = ~(((theta <= self.low) & (gradient > 0)) | ((theta >= self.high) & (gradient < 0)))
        both, identity = free[:, :, None] & free[:, None, :], np.eye(theta.shape[1])
        gradient = np.where(free, gradient, 0.0)
        gauss, newton = (np.where(both, part, identity * ~free[:, None, :]) for part in (gauss, newton))
        diagonal = np.einsum("bii->bi", gauss)
        scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        # The quadratic that bounds the Huber loss from above promises at least this decrease.
        promise = np.sum(gradient * _solve(gauss, np.full(len(theta), 1e-14), scale, gradient), axis=1) / 2
        moved, lowest = theta, value
        for matrix in (gauss, newton):
            candidate = np.clip(theta - _solve(matrix, damping, scale, gradient), self.low, self.high)
            candidate = np.where(np.isfinite(candidate).all(axis=1, keepdims=True), candidate, theta)
            reached = np.asarray(self.objective(candidate, *rows))
            better = reached < lowest
            moved, lowest = np.where(better[:, None], candidate, moved), np.where(better, reached, lowest)
        downhill = lowest < value
        damping = np.clip(np.where(downhill, damping / 8, damping * 5), _DAMPING[0], _DAMPING[2])
        return moved, lowest, damping, np.abs(promise) / (value + 1e-300)


def minimise(
    law: Law,
    columns: dict[str, Float[np.ndarray, " rows"]],
    *,
    theta: Float[np.ndarray, "batch parameters"],
    target: Float[np.ndarray, "targets rows"],
    weights: Float[np.ndarray, "targets rows"],
    delta: float,
) -> Solution:
    """Minimise, for every problem of the batch, sum of weights x Huber_delta(target - log law(columns, theta)).

    Args:
        law: the law all problems share.
        columns: its columns.
        theta: starting points, in the solver's coordinates.
        target: log loss; one row a problem, or one row for all.
        weights: row weights; one row a problem, or one row for all.
        delta: of the Huber loss; `LEAST_SQUARES` for least squares.

    Returns:
        The optima. Memory beyond inputs and outputs does not grow with the batch.
    """
    rows = target.shape[-1]
    # Few distinct shapes, so that tables and resamples of any size share a compiled program.
    padded = max(32, 1 << (rows - 1).bit_length())
    fill = ((0, 0), (0, padded - rows))
    wide = {name: np.pad(np.asarray(columns[name], np.float64), fill[1], mode="edge") for name in law.columns}
    with jax.enable_x64(True), jax.default_device(_host()), np.errstate(all="ignore"):
        slots = _Slots(law, wide, np.asarray(theta), np.pad(target, fill), np.pad(weights, fill), delta)
        return slots.run(int(np.clip(2**18 // padded, 1, _SLOTS)))


def _host() -> jax.Device | None:
    """Fits run on the host's processor: float64, small, and not worth an accelerator's compile time."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the platforms were restricted to an accelerator
        return None
