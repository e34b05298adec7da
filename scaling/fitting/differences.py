"""How a law's predictions move with its parameters, by differences of the formula as NumPy evaluates it.

No derivative of JAX's and, for a formula of operators, nothing compiled: evidence that is independent of the solver's
own derivatives, and at hand at once.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from scaling import laws
from scaling.fitting import solver
from scaling.laws import Law

_STEP = 1e-6  # of central differences, in the solver's coordinates


@lru_cache(maxsize=64)
def _compiled(law: Law) -> Callable:
    """The formula compiled for a batch of parameters: one operation at a time is slow where it needs jax.numpy."""
    import jax

    def one(columns, values):
        return law.formula(**columns, **values)

    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


@lru_cache(maxsize=64)
def _plain(law: Law) -> bool:
    """The formula is one of operators, which NumPy evaluates for a batch of parameters as it stands."""
    probe = law.formula(**dict.fromkeys((*law.columns, *law.names), np.ones(1)))
    return isinstance(probe, np.ndarray | np.floating)


def log_prediction(
    law: Law, columns: Mapping[str, Float[np.ndarray, "rows ..."]], theta: Float[np.ndarray, "batch parameters"]
) -> Float[np.ndarray, "batch rows"]:
    """Log of the law at every row for a batch of parameters in the solver's coordinates, in float64."""
    named = {name: laws.array(columns[name]) for name in law.columns}
    rows = len(next(iter(named.values())))
    values = solver.decode(law, theta)
    with np.errstate(all="ignore"):
        if all(each.ndim == 1 for each in named.values()) and _plain(law):
            predicted = law(columns, {name: values[:, i, None] for i, name in enumerate(law.names)})
        else:
            batch = max(16, 1 << (len(values) - 1).bit_length())  # few shapes, so few compilations
            values = np.pad(values, ((0, batch - len(values)), (0, 0)), mode="edge")
            with solver.on_host():
                predicted = _compiled(law)(named, {name: values[:, i] for i, name in enumerate(law.names)})
            predicted = np.asarray(predicted)[: len(theta)]
        return np.log(np.broadcast_to(predicted, (len(theta), rows)))


def sensitivity(
    law: Law, columns: Mapping[str, Float[np.ndarray, "rows ..."]], theta: Float[np.ndarray, "batch parameters"]
) -> tuple[Float[np.ndarray, "batch rows"], Float[np.ndarray, "batch rows parameters"]]:
    """Log prediction and its derivatives in the solver's coordinates, by central differences.

    Inside the bounds where theta is.
    """
    batch, size = theta.shape
    low, high = solver.limits(law)
    step = _STEP * np.maximum(1.0, np.abs(theta))
    ends = theta + step, theta - step
    ends = (
        np.where(theta <= high, np.minimum(ends[0], high), ends[0]),
        np.where(theta >= low, np.maximum(ends[1], low), ends[1]),
    )
    points = np.repeat(theta[:, None, :], 2 * size + 1, axis=1)
    which = np.arange(size)
    for first, moved in zip((1, size + 1), ends, strict=True):
        points[:, first + which, which] = moved
    logs = log_prediction(law, columns, points.reshape(-1, size)).reshape(batch, 2 * size + 1, -1)
    distance = np.maximum(ends[0] - ends[1], 1e-300)
    slope = (logs[:, 1 : size + 1] - logs[:, size + 1 :]) / distance[:, :, None]
    return logs[:, 0], np.swapaxes(slope, 1, 2)
