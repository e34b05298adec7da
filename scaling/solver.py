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
_CHUNK = 64


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


class _State(NamedTuple):
    theta: jax.Array
    value: jax.Array
    damping: jax.Array
    slack: jax.Array
    iteration: jax.Array


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


def _solve(matrix: jax.Array, damping: jax.Array, scale: jax.Array, vector: jax.Array) -> jax.Array:
    """(matrix + damping x diag(scale^2))^-1 vector, equilibrated so that parameters of any magnitude mix."""
    equilibrated = matrix / jnp.outer(scale, scale) + damping * jnp.eye(len(scale))
    return jnp.linalg.solve(equilibrated, vector / scale) / scale


def _minimise(law: Law, theta, target, weights, columns, delta) -> _State:
    low, high = (jnp.asarray(encode(law, [getattr(p, end) for p in law.parameters])) for end in ("low", "high"))

    def objective(theta):
        residual = target - _log_prediction(law, theta, columns)
        size = jnp.abs(residual)
        huber = jnp.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))
        value = jnp.sum(jnp.where(weights > 0, weights * huber, 0.0))
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def step(state: _State) -> _State:
        theta = state.theta
        predict = lambda theta: _log_prediction(law, theta, columns)  # noqa: E731
        residual = target - predict(theta)
        jacobian = jax.jacfwd(predict)(theta)
        size = jnp.abs(residual)
        reweighted = weights * jnp.where(size <= delta, 1.0, delta / jnp.maximum(size, delta))
        pull = jax.lax.stop_gradient(reweighted * residual)
        curvature = jax.hessian(lambda theta: pull @ predict(theta))(theta)
        gradient = -pull @ jacobian
        gauss = (jacobian * reweighted[:, None]).T @ jacobian
        newton = (jacobian * (weights * (size <= delta))[:, None]).T @ jacobian - curvature
        free = ~(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))
        both = jnp.outer(free, free)
        gradient = jnp.where(free, gradient, 0.0)
        diagonal = jnp.where(free, jnp.diag(gauss), 1.0)
        scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
        fixed = jnp.diag(jnp.where(free, 0.0, 1.0))
        gauss, newton = jnp.where(both, gauss, 0.0) + fixed, jnp.where(both, newton, 0.0) + fixed

        candidates = jnp.stack(
            [jnp.clip(theta - _solve(matrix, state.damping, scale, gradient), low, high) for matrix in (gauss, newton)]
        )
        candidates = jnp.where(jnp.isfinite(candidates), candidates, theta[None, :])
        values = jax.vmap(objective)(candidates)
        best = jnp.argmin(values)
        better = values[best] < state.value
        # The quadratic model that bounds the Huber loss from above promises at least this decrease.
        promise = gradient @ _solve(gauss, 1e-14, scale, gradient) / 2
        return _State(
            theta=jnp.where(better, candidates[best], theta),
            value=jnp.where(better, values[best], state.value),
            damping=jnp.clip(jnp.where(better, state.damping / 8, state.damping * 5), 1e-15, 1e12),
            slack=jnp.abs(promise) / (state.value + 1e-300),
            iteration=state.iteration + 1,
        )

    def unfinished(state: _State):
        tiny = state.value < 1e-26 * jnp.sum(weights)  # an exact fit: nothing left but rounding
        stuck = state.damping >= 1e12
        return (state.iteration < _ITERATIONS) & (state.slack > _CONVERGED) & ~tiny & ~stuck & jnp.isfinite(state.value)

    theta = jnp.clip(theta, low, high)
    zero = jnp.asarray(0)
    start = _State(theta, objective(theta), damping=jnp.asarray(1e-2), slack=jnp.asarray(jnp.inf), iteration=zero)
    end = jax.lax.while_loop(unfinished, step, start)
    return end._replace(slack=jnp.where(end.value < 1e-26 * jnp.sum(weights), 0.0, end.slack))


@lru_cache(maxsize=64)
def _compiled(law: Law):
    return jax.jit(jax.vmap(lambda *problem: _minimise(law, *problem), in_axes=(0, 0, 0, None, None)))


def minimise(
    law: Law,
    columns: dict[str, Float[np.ndarray, " rows"]],
    *,
    theta: Float[np.ndarray, "batch parameters"],
    target: Float[np.ndarray, "batch rows"],
    weights: Float[np.ndarray, "batch rows"],
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
        The optima; memory does not grow with the batch beyond inputs and outputs.
    """
    batch, rows = len(theta), target.shape[-1]
    # Few distinct shapes, so that tables and resamples of any size share a compiled program.
    padded = max(32, 1 << (rows - 1).bit_length())
    chunk = int(np.clip(2**18 // padded, 1, _CHUNK))
    fill = ((0, 0), (0, padded - rows))
    target = np.pad(np.broadcast_to(target, (len(target), rows)), fill)
    weights = np.pad(np.broadcast_to(weights, (len(weights), rows)), fill)
    wide = {name: np.pad(np.asarray(columns[name], np.float64), fill[1], mode="edge") for name in law.columns}
    results = []
    with jax.enable_x64(True), jax.default_device(_host()), np.errstate(all="ignore"):
        for first in range(0, batch, chunk):
            index = np.minimum(np.arange(first, first + chunk), batch - 1)
            end = _compiled(law)(
                theta[index],
                target[index if len(target) > 1 else np.zeros_like(index)],
                weights[index if len(weights) > 1 else np.zeros_like(index)],
                wide,
                np.float64(delta),
            )
            results.append([np.asarray(part)[: batch - first] for part in (end.theta, end.value, end.slack)])
    return Solution(*(np.concatenate(parts) for parts in zip(*results, strict=True)))


def _host() -> jax.Device | None:
    """Fits run on the host's processor: float64, small, and not worth an accelerator's compile time."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the platforms were restricted to an accelerator
        return None
