"""Where a fit begins: a grid or a spread of the parameters that must be guessed, the others solved for."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import scipy.optimize
from jaxtyping import Float

from scaling.fitting import solver
from scaling.laws import Law

_CELLS = 2**20  # starts x rows predicted at once


def starting_points(
    law: Law,
    columns: Mapping[str, Float[np.ndarray, "rows ..."]],
    loss: Float[np.ndarray, " rows"],
    *,
    count: int | None = None,
) -> Float[np.ndarray, "starts parameters"]:
    """Where to begin: the product of every parameter's starts, or `count` points spread between them.

    Parameters the prediction is linear in are solved for by non-negative least squares (variable projection; relative
    residuals, for which it has a closed form), so only the others have to be guessed.
    """
    units = [np.exp(np.mean(np.log(columns[each.unit]))) if each.unit else 1.0 for each in law.parameters]
    grids = [
        (1.0,) if each.linear else tuple(start * unit for start in each.starts)
        for each, unit in zip(law.parameters, units, strict=True)
    ]
    points = np.array(list(product(*grids)), dtype=np.float64) if count is None else _spread(law, grids, count)
    linear = [i for i, parameter in enumerate(law.parameters) if parameter.linear]
    # A row of numbers a row cannot be predicted for many starts at once.
    block = max(1, _CELLS // len(loss)) if all(values.ndim == 1 for values in columns.values()) else 1
    for first in range(0, len(points) if linear else 0, block):
        some = points[first : first + block]
        some[:, linear] = _project(_bases(law, columns, some, linear, len(loss)) / loss)
    low, high = (np.array([getattr(parameter, end) for parameter in law.parameters]) for end in ("low", "high"))
    return np.clip(points, low, high)


def _spread(law: Law, grids: list[tuple[float, ...]], count: int) -> Float[np.ndarray, "starts parameters"]:
    """Evenly spread points between the least and the greatest start of every parameter, in the solver's coordinates.

    An additive recurrence whose steps are powers of the root of x^(d+1) = x + 1 (Roberts 2018), the golden ratio in d
    dimensions.
    """
    low, high = (solver.encode(law, np.array([end(grid) for grid in grids])) for end in (min, max))
    moving = np.flatnonzero([not parameter.linear for parameter in law.parameters])
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (len(moving) + 1))
    steps = root ** -np.arange(1.0, len(moving) + 1)
    unit = np.zeros((count, len(grids)))
    unit[:, moving] = (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1
    return solver.decode(law, low + unit * (high - low))


def _bases(law: Law, columns, points: np.ndarray, linear: list[int], rows: int) -> np.ndarray:
    """Of every start, what each linear parameter adds to the prediction when it is one: (starts, linear, rows)."""
    bases = np.empty((len(points), len(linear), rows))
    for k, one in enumerate(linear):
        values = points.copy()
        values[:, linear] = 0.0
        values[:, one] = 1.0
        values = values.T[:, :, None] if len(points) > 1 else values[0]
        with np.errstate(all="ignore"):
            bases[:, k] = law(columns, dict(zip(law.names, values, strict=True)))
    return bases


def _project(bases: Float[np.ndarray, "starts linear rows"]) -> Float[np.ndarray, "starts linear"]:
    """Non-negative least squares of ones on the bases of every start."""
    size = np.linalg.norm(bases, axis=2, keepdims=True)
    size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
    bases = np.nan_to_num(bases / size)
    gram = bases @ bases.swapaxes(1, 2) + 1e-12 * np.eye(bases.shape[1])
    solved = np.linalg.solve(gram, bases.sum(axis=2)[:, :, None])[:, :, 0]
    for i in np.flatnonzero((solved < 0).any(axis=1)):
        solved[i] = scipy.optimize.nnls(bases[i].T, np.ones(bases.shape[2]))[0]
    # A coefficient of zero has no logarithm; a thousandth of the loss is small and can grow.
    return np.maximum(solved, 1e-3 * np.sqrt(bases.shape[2])) / size[:, :, 0]
