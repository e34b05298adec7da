"""The minimiser: many small robust regressions at once, in float64, each to its own optimum.

Problems share a law and its columns and differ in starting point, target and row weights, so the starts of one fit and
the resamples of a bootstrap are the same call. A step is Newton's on the exact Hessian, which ends quadratically where
the Huber loss is nearly an absolute value and reweighting crawls; where that Hessian bends down, the step is that of
iteratively reweighted Gauss-Newton, which goes downhill from anywhere.

Each thread holds some problems, in slots; a finished one makes room for the next, so that none waits for another. A law
is evaluated in blocks of so many problems by so many rows, so that one compiled program serves any number of problems
and any table: a program takes seconds to compile, and rows without weight little to run.
"""

import os
from collections.abc import Callable, Iterator
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
_BLOCKS = (32, 128), (16, 1024)  # problems x rows of a program, for tables of fewer rows than the second's and others
_CELLS = 2**15  # problems x rows that a thread has under way
_SLOTS = 128  # most problems under way
_DAMPING = (1e-15, 1e12)  # least and most
_FIRST = (1e-4, 1.0)  # damping of the first step, near an optimum and far from one


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
    delta: float | Float[np.ndarray, " batch"],
    iterations: int = _ITERATIONS,
) -> Solution:
    """Minimise, for every problem of the batch, sum of weights x Huber_delta(target - log law(columns, theta)).

    Args:
        law: the law all problems share.
        columns: its columns.
        theta: starting points, in the solver's coordinates.
        target: log loss; one row a problem, or one row for all.
        weights: row weights; one row a problem, or one row for all.
        delta: of the Huber loss, of each problem or of all; `LEAST_SQUARES` for least squares.
        iterations: after which a problem is left where it is; fewer where its optimum is only on the way to another.

    Returns:
        The optima; value inf where the law is not finite at the starting point. Memory beyond inputs and outputs does
        not grow with the batch, and no digit depends on the number of processors.
    """
    rows, batch = target.shape[-1], len(theta)
    block = _BLOCKS[rows >= _BLOCKS[1][1]]
    padded = -(-rows // block[1]) * block[1]
    problems = _Problems(
        law=law,
        columns={name: _pad(array(columns[name]), padded, mode="edge") for name in law.columns},
        theta=np.asarray(theta),
        target=_pad(target.T, padded).T,
        weights=_pad(weights.T, padded).T,
        delta=np.broadcast_to(np.asarray(delta, np.float64), batch),
        block=block,
        iterations=iterations,
    )
    slots = int(np.clip(_CELLS // padded, block[0], _SLOTS))
    workers = int(np.clip(batch // slots, 1, processors()))
    shards = np.array_split(np.arange(batch), workers)
    one, two = (batch, len(law.parameters)), (batch, len(law.parameters), len(law.parameters))
    solution = Solution(*(np.full(shape, np.nan) for shape in (one, batch, batch, batch, two, two)))
    with ThreadPoolExecutor(workers) as pool:  # XLA leaves Python's lock free while it computes
        list(pool.map(lambda shard: _solve(problems, shard, slots, solution), shards))
    return solution


def processors() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pad(
    values: Float[np.ndarray, "rows ..."], rows: int, *, mode: str = "constant"
) -> Float[np.ndarray, "padded ..."]:
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
    delta: np.ndarray
    block: tuple[int, int]
    iterations: int

    def rows(self, problems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets and weights of some problems."""
        return tuple(
            part[problems if len(part) > 1 else np.zeros_like(problems)] for part in (self.target, self.weights)
        )

    def expander(self) -> Callable[..., Expansion]:
        """A function of (theta, target, weights, delta), each of any number of problems: the sum over the blocks."""
        program, (many, length) = compiled(self.law), self.block
        parts = [slice(first, first + length) for first in range(0, self.target.shape[1], length)]
        columns = [jax.device_put({name: values[part] for name, values in self.columns.items()}) for part in parts]

        def expand(theta, target, weights, delta) -> Expansion:
            found = _expansion(len(theta), theta.shape[1])
            for first in range(0, len(theta), many):
                some = np.minimum(np.arange(first, first + many), len(theta) - 1)
                for part, shared in zip(parts, columns, strict=True):
                    here = program(theta[some], target[some, part], weights[some, part], shared, delta[some])
                    for whole, added in zip(found, here, strict=True):
                        whole[first : first + many] += np.asarray(added)[: len(theta) - first]
            return found

        return expand


def _expansion(batch: int, parameters: int) -> Expansion:
    one, two = (batch, parameters), (batch, parameters, parameters)
    return Expansion(np.zeros(batch), np.zeros(one), np.zeros(two), np.zeros(two))


def _solve(problems: _Problems, shard: np.ndarray, slots: int, solution: Solution) -> None:
    """Solve some of the problems; their part of the solution is filled in."""
    with on_host():
        low, high = limits(problems.law)
        expand = problems.expander()
        problem, waiting = shard[:slots].copy(), min(slots, len(shard))
        target, weights = problems.rows(problem)
        candidate = np.clip(problems.theta[problem], low, high)
        theta, at = candidate, _expansion(*candidate.shape)
        value, damping, age = (np.full(waiting, each) for each in (np.inf, np.nan, 0.0))
        while len(problem):
            reached = expand(candidate, target, weights, problems.delta[problem])
            downhill = reached.value < value  # always so at a starting point, whose value is still infinite
            theta, value = np.where(downhill[:, None], candidate, theta), np.where(downhill, reached.value, value)
            at = Expansion(*(_choose(downhill, *pair) for pair in zip(reached, at, strict=True)))
            damping = np.clip(np.where(downhill, damping / 10, damping * 20), *_DAMPING)
            step, slack, gradient, damping = _step(at, theta, damping, low, high)
            exact = value < 1e-26 * weights.sum(axis=1)  # nothing left but rounding
            slack, gradient = np.where(exact, 0.0, slack), np.where(exact, 0.0, gradient)
            age += 1
            ended = (
                (slack <= _CONVERGED) | (age >= problems.iterations) | (damping >= _DAMPING[1]) | ~np.isfinite(value)
            )
            candidate = np.clip(theta - step, low, high)
            done = np.flatnonzero(ended)  # these are kept, and their slots given to waiting problems or closed
            if not len(done):
                continue
            state = (theta, value, slack, gradient, at.gauss, at.hessian)
            for kept, part in zip(solution, state, strict=True):
                kept[problem[done]] = part[done]
            fresh = done[: len(shard) - waiting]
            problem[fresh] = shard[waiting : waiting + len(fresh)]
            waiting += len(fresh)
            target[fresh], weights[fresh] = problems.rows(problem[fresh])
            candidate[fresh] = np.clip(problems.theta[problem[fresh]], low, high)
            value[fresh], damping[fresh], age[fresh] = np.inf, np.nan, 0
            if len(fresh) < len(done):
                state = (problem, target, weights, candidate, theta, value, damping, age)
                closed = done[len(fresh) :]
                problem, target, weights, candidate, theta, value, damping, age = (
                    np.delete(each, closed, axis=0) for each in state
                )
                at = Expansion(*(np.delete(each, closed, axis=0) for each in at))


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
