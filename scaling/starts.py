"""Where a fit begins: a grid or a spread of the parameters that must be guessed, the others solved for."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import scipy.optimize
from jaxtyping import Float

from scaling import solver
from scaling.laws import Law


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
    for point in points if linear else ():
        basis = np.stack([_predict_one(law, columns, point, i) for i in linear], axis=1) / loss[:, None]
        size = np.linalg.norm(basis, axis=0)
        size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
        solved, _ = scipy.optimize.nnls(np.nan_to_num(basis / size), np.ones(len(loss)))
        # A coefficient of zero has no logarithm; a thousandth of the loss is small and can grow.
        point[linear] = np.maximum(solved, 1e-3 * np.sqrt(len(loss))) / size
    low, high = (np.array([getattr(parameter, end) for parameter in law.parameters]) for end in ("low", "high"))
    return np.clip(points, low, high)


def _spread(law: Law, grids: list[tuple[float, ...]], count: int) -> np.ndarray:
    """Evenly spread points between the least and the greatest start of every parameter, in the solver's coordinates.

    An additive recurrence whose steps are powers of the root of x^(d+1) = x + 1 (Roberts 2018), the golden ratio in d
    dimensions.
    """
    ends = [solver.encode(law, np.array([pick(grid) for grid in grids])) for pick in (min, max)]
    moving = np.flatnonzero([not parameter.linear for parameter in law.parameters])
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (len(moving) + 1))
    steps = root ** -np.arange(1, len(moving) + 1)
    unit = np.zeros((count, len(grids)))
    unit[:, moving] = (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1
    return solver.decode(law, ends[0] + unit * (ends[1] - ends[0]))


def _predict_one(law: Law, columns, point: np.ndarray, only: int) -> np.ndarray:
    values = point.copy()
    values[only] = 1.0
    others = [i for i, parameter in enumerate(law.parameters) if parameter.linear and i != only]
    values[others] = 0.0
    rows = len(next(iter(columns.values())))
    return np.broadcast_to(law(columns, dict(zip(law.names, values, strict=True))), (rows,))
