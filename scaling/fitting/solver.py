"""The minimiser: many small robust regressions at once, in float64, each to its own optimum.

Problems share a law and its columns and differ in starting point, target and row weights, so the starts of one fit and
the resamples of a bootstrap are the same call. A step is Newton's on the exact Hessian, which ends quadratically where
the Huber loss is nearly an absolute value and reweighting crawls; where that Hessian bends down, the step is that of
iteratively reweighted Gauss-Newton, which goes downhill from anywhere.

Each thread holds a fixed number of problems, in slots; a finished one makes room for the next, so that none waits for
another and one compiled program serves any number of problems.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from scaling.fitting.derivatives import Expansion, compiled
from scaling.laws import Law, Scale, array

LEAST_SQUARES = 1e6
"""A Huber delta no log residual reaches."""

_CONVERGED = 1e-14  # share of the objective that a further step promises
_ITERATIONS = 300
_CELLS = 2**14  # problems x rows that a thread has under way: few enough for the processor's cache
_SLOTS = (1, 256)  # least and most problems under way
_DAMPING = (1e-15, 1e12)  # least and most
_FIRST = (1e-4, 1.0)  # damping of the first step, near an optimum and far from one
_LEAST = 6  # log2 of the fewest rows of a program


class Solution(NamedTuple):
    """Optima of a batch of problems.

    Attributes:
        theta: parameters as the solver moves them (logarithms where the scale is LOG).
        value: sum over rows of weight x Huber(log residual).
        slack: relative decrease of the objective that another step promises; tiny at an optimum.
        gradient: its largest derivative among parameters not at a bound, each parameter in units of its own curvature
            and the objective relative to its value: 0 at an optimum, 1 where residuals are parallel to a sensitivity.
        gauss: Gauss-Newton matrix at the optimum, each row weighted by Huber'(r) / r.
        hessian: exact second derivatives at the optimum.
    """

    theta: Float[np.ndarray, "batch parameters"]
    value: Float[np.ndarray, " batch"]
    slack: Float[np.ndarray, " batch"]
    gradient: Float[np.ndarray, " batch"]
    gauss: Float[np.ndarray, "batch parameters parameters"]
    hessian: Float[np.ndarray, "batch parameters parameters"]


def encode(law: Law, values: Float[np.ndarray, "... parameters"]) -> Float[np.ndarray, "... parameters"]:
    """Parameters of a law -> the solver's coordinates."""
    values = np.asarray(values, dtype=np.float64)
    log = np.array([parameter.scale is Scale.LOG for parameter in law.parameters])
    return np.where(log, np.log(np.where(log, values, 1.0)), values)


def decode(law: Law, theta: Float[np.ndarray, "... parameters"]) -> Float[np.ndarray, "... parameters"]:
    """The solver's coordinates -> parameters of the law."""
    log = np.array([parameter.scale is Scale.LOG for parameter in law.parameters])
    return np.where(log, np.exp(np.where(log, theta, 0.0)), theta)


def limits(law: Law) -> tuple[Float[np.ndarray, " parameters"], Float[np.ndarray, " parameters"]]:
    """Lower and upper bounds of a law's parameters in the solver's coordinates."""
    low, high = (encode(law, np.array([getattr(p, end) for p in law.parameters])) for end in ("low", "high"))
    return low, high


def minimise(
    law: Law,
    columns: dict[str, Float[np.ndarray, "rows ..."]],
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
        The optima; value inf where the law is not finite at the starting point. Memory beyond inputs and outputs does
        not grow with the batch, and no digit depends on the number of processors.
    """
    rows, batch = target.shape[-1], len(theta)
    padded = padding(rows)
    columns = {name: pad(array(columns[name]), padded, mode="edge") for name in law.columns}
    problems = _Problems(
        law, columns, np.asarray(theta), pad(target.T, padded).T, pad(weights.T, padded).T, np.float64(delta)
    )
    slots = int(np.clip(_CELLS // padded, *_SLOTS))
    workers = int(np.clip(batch // slots, 1, _processors()))
    shards = np.array_split(np.arange(batch), workers)
    solution = Solution(*(np.full((batch, *shape), np.nan) for shape in _shapes(len(law.parameters), Solution)))
    with ThreadPoolExecutor(workers) as pool:  # XLA leaves Python's lock free while it computes
        list(pool.map(lambda shard: _solve(problems, shard, slots, solution), shards))
    return solution


def _processors() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def padding(rows: int) -> int:
    """Rows of the program a table is solved by: 64, 256, 1024, ..., so that tables of like size share one.

    A program takes seconds to compile and rows without weight little to run.
    """
    doublings = max((rows - 1).bit_length(), _LEAST)
    return 1 << (doublings + doublings % 2)


def pad(values: Float[np.ndarray, "rows ..."], rows: int, *, mode: str = "constant") -> Float[np.ndarray, "padded ..."]:
    """Rows added at the end: zeros, or with mode "edge" copies of the last."""
    return np.pad(values, ((0, rows - len(values)), *((0, 0),) * (values.ndim - 1)), mode=mode)


@contextmanager
def on_host() -> Iterator[None]:
    """Float64 on the host's processor: fits are small, and not worth an accelerator's compile time."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the platforms were restricted to an accelerator
        device = None
    with jax.enable_x64(True), jax.default_device(device), np.errstate(all="ignore"):
        yield


class _Problems(NamedTuple):
    law: Law
    columns: dict[str, np.ndarray]
    theta: np.ndarray
    target: np.ndarray
    weights: np.ndarray
    delta: np.float64

    def rows(self, problems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets and weights of some problems."""
        return tuple(
            part[problems if len(part) > 1 else np.zeros_like(problems)] for part in (self.target, self.weights)
        )


def _shapes(parameters: int, of: type[Solution | Expansion]) -> tuple[tuple[int, ...], ...]:
    """Of the fields of a solution or an expansion of one problem."""
    one, two = (parameters,), (parameters, parameters)
    return (one, (), (), (), two, two) if of is Solution else ((), one, two, two)


def _solve(problems: _Problems, shard: np.ndarray, slots: int, solution: Solution) -> None:
    """Solve some of the problems; their part of the solution is filled in."""
    with on_host():
        law, expand = problems.law, compiled(problems.law)
        low, high = limits(law)
        shared = jax.device_put((problems.columns, problems.delta))
        problem = shard[np.arange(slots) % len(shard)]
        waiting = min(slots, len(shard))
        live = np.arange(slots) < waiting
        target, weights = problems.rows(problem)
        candidate = np.clip(problems.theta[problem], low, high)
        theta, value, damping, age = candidate, np.full(slots, np.inf), np.full(slots, np.nan), np.zeros(slots)
        at = Expansion(*(np.zeros((slots, *shape)) for shape in _shapes(len(low), Expansion)))
        while live.any():
            reached = Expansion(*map(np.asarray, expand(candidate, target, weights, *shared)))
            downhill = reached.value < value  # always so at a starting point, whose value is still infinite
            theta, value = np.where(downhill[:, None], candidate, theta), np.where(downhill, reached.value, value)
            at = Expansion(*(_choose(downhill, *pair) for pair in zip(reached, at, strict=True)))
            damping = np.clip(np.where(downhill, damping / 10, damping * 20), *_DAMPING)
            step, slack, gradient, damping = _step(at, theta, damping, low, high)
            exact = value < 1e-26 * weights.sum(axis=1)  # nothing left but rounding
            slack, gradient = np.where(exact, 0.0, slack), np.where(exact, 0.0, gradient)
            age += 1
            ended = (slack <= _CONVERGED) | (age >= _ITERATIONS) | (damping >= _DAMPING[1]) | ~np.isfinite(value)
            candidate = np.clip(theta - step, low, high)
            done = np.flatnonzero(live & ended)  # these are kept, and their slots given to waiting problems
            if not len(done):
                continue
            state = (theta, value, slack, gradient, at.gauss, at.hessian)
            for kept, part in zip(solution, state, strict=True):
                kept[problem[done]] = part[done]
            fresh = done[: len(shard) - waiting]
            live[done[len(fresh) :]] = False
            problem[fresh] = shard[waiting : waiting + len(fresh)]
            waiting += len(fresh)
            target[fresh], weights[fresh] = problems.rows(problem[fresh])
            candidate[fresh] = np.clip(problems.theta[problem[fresh]], low, high)
            value[fresh], damping[fresh], age[fresh] = np.inf, np.nan, 0


def _choose(which: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(which.reshape(-1, *(1,) * (one.ndim - 1)), one, other)


def _step(at: Expansion, theta, damping, low, high) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The damped step, what an undamped one promises, the scaled gradient, the damping; bounds in force are held.

    Damping that is not a number is chosen: small near an optimum, where little is promised, and large far from one.
    """
    free = ~(((theta <= low) & (at.gradient > 0)) | ((theta >= high) & (at.gradient < 0)))
    both, held = free[:, :, None] & free[:, None, :], np.eye(theta.shape[1]) * ~free[:, None, :]
    gradient = np.where(free, at.gradient, 0.0)
    gauss, hessian = (np.where(both, part, held) for part in (at.gauss, at.hessian))
    diagonal = np.einsum("bii->bi", gauss)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    # Equilibrated, so that parameters of any magnitude mix.
    gauss, hessian = (part / (scale[:, :, None] * scale[:, None, :]) for part in (gauss, hessian))
    scaled, identity = gradient / scale, np.eye(theta.shape[1])
    # The quadratic that bounds the Huber loss from above promises at least this decrease.
    promise = np.sum(scaled * _eliminate(gauss + 1e-14 * identity, scaled.copy()), axis=1) / 2
    slack = np.abs(promise) / (at.value + 1e-300)
    damping = np.where(np.isnan(damping), np.clip(slack**2, *_FIRST), damping)
    ridge = damping[:, None, None] * identity
    both = np.concatenate([hessian + ridge, gauss + ridge]), np.concatenate([scaled, scaled])
    newton, safe = np.split(_eliminate(*both), 2)
    step = np.where(np.isfinite(newton).all(axis=1, keepdims=True), newton, np.nan_to_num(safe)) / scale
    return step, slack, np.max(np.abs(scaled), axis=1) / np.sqrt(2 * at.value + 1e-300), damping


def _eliminate(rows: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solutions of a batch of small symmetric systems, by Gauss; not a number where one is not positive definite."""
    size = right.shape[1]
    for i in range(size):
        pivot = np.where(rows[:, i, i] > 0, rows[:, i, i], np.nan)
        factor = rows[:, i + 1 :, i] / pivot[:, None]
        rows[:, i + 1 :, i:] -= factor[:, :, None] * rows[:, i, None, i:]
        right[:, i + 1 :] -= factor * right[:, i, None]
        rows[:, i, i] = pivot
    for i in reversed(range(size)):
        right[:, i] = (right[:, i] - np.sum(rows[:, i, i + 1 :] * right[:, i + 1 :], axis=1)) / rows[:, i, i]
    return right
