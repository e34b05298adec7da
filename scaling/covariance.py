"""The quadratic picture of a fit: how predictions move with the parameters, and the covariance of the optimum.

The fitter's objective is a sum of rho(r) over log residuals r, with psi = rho'. It is no log-likelihood: near least
absolute deviations its curvature says nothing about the noise. Two moments of the residuals turn it into one,

    E[psi^2], the noise of the score, and E[psi'], the curvature of the objective,

so that with J the derivative of the log prediction, the covariance of the optimum is E[psi^2] / E[psi']^2 (J'J)^-1
(Huber 1973, Annals of Statistics 1(5), section 4), and the objective rises above its minimum as
E[psi^2] / (2 E[psi']) times chi-square (Ronchetti 1982; Hampel et al. 1986, Robust Statistics, section 7.2).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import scipy.special
from jaxtyping import Float, Shaped

from scaling import solver
from scaling.fitting import Fit
from scaling.laws import Law

_STEP = 1e-6  # of central differences, in the solver's coordinates


@lru_cache(maxsize=64)
def _compiled(law: Law) -> Callable | None:
    """The formula compiled, when it is written with jax.numpy: evaluated one operation at a time it is slow."""
    probe = law.formula(**dict.fromkeys((*law.columns, *law.names), np.ones(1)))
    if isinstance(probe, np.ndarray | np.floating):
        return None
    import jax

    return jax.jit(law.formula)


def log_prediction(
    law: Law, columns: Mapping[str, Float[np.ndarray, " rows"]], theta: Float[np.ndarray, "batch parameters"]
) -> Float[np.ndarray, "batch rows"]:
    """Log of the law at every row for a batch of parameters in the solver's coordinates, in float64."""
    rows = np.shape(next(iter(columns.values())))
    values = solver.decode(law, theta)
    with np.errstate(all="ignore"):
        function = _compiled(law)
        if function is None:
            predicted = law(columns, {name: values[:, i, None] for i, name in enumerate(law.names)})
        else:
            import jax

            batch = max(32, 1 << (len(values) - 1).bit_length())  # few shapes, so few compilations
            values = np.pad(values, ((0, batch - len(values)), (0, 0)), mode="edge")
            named = {name: np.asarray(columns[name], np.float64) for name in law.columns}
            named |= {name: values[:, i, None] for i, name in enumerate(law.names)}
            with jax.enable_x64(True):
                predicted = np.asarray(function(**named))[: len(theta)]
        return np.log(np.broadcast_to(predicted, (len(theta), *rows)))


def sensitivity(
    law: Law, columns: Mapping[str, Float[np.ndarray, " rows"]], theta: Float[np.ndarray, "batch parameters"]
) -> tuple[Float[np.ndarray, "batch rows"], Float[np.ndarray, "batch rows parameters"]]:
    """Log prediction and its derivatives in the solver's coordinates, by central differences inside the bounds."""
    batch, size = theta.shape
    low, high = bounds(law)
    step = _STEP * np.maximum(1.0, np.abs(theta))
    ends = np.minimum(theta + step, high), np.maximum(theta - step, low)
    points = np.repeat(theta[:, None, :], 2 * size + 1, axis=1)
    which = np.arange(size)
    for first, moved in zip((1, size + 1), ends, strict=True):
        points[:, first + which, which] = moved
    logs = log_prediction(law, columns, points.reshape(-1, size)).reshape(batch, 2 * size + 1, -1)
    distance = np.maximum(ends[0] - ends[1], 1e-300)
    slope = (logs[:, 1 : size + 1] - logs[:, size + 1 :]) / distance[:, :, None]
    return logs[:, 0], np.swapaxes(slope, 1, 2)


def bounds(law: Law) -> tuple[Float[np.ndarray, " parameters"], Float[np.ndarray, " parameters"]]:
    """Lower and upper bounds of a law's parameters in the solver's coordinates."""
    low, high = (solver.encode(law, np.array([getattr(p, end) for p in law.parameters])) for end in ("low", "high"))
    return low, high


def moments(residuals: Float[np.ndarray, " rows"], *, delta: float, parameters: int) -> tuple[float, float]:
    """E[psi^2] and E[psi'] of the Huber loss, from the residuals of a fit.

    Args:
        residuals: log residuals.
        delta: where the loss turns linear.
        parameters: number fitted; E[psi^2] is corrected for them.

    Returns:
        Both moments. psi' is 1 within delta and 0 outside, so E[psi'] is a density times 2 delta; with a small delta
        few residuals fall inside, and the density is counted over a wider window (a normal reference bandwidth).
        About as many residuals as parameters are zero for no other reason than that the fit passes through them;
        they are not counted.
    """
    rows = len(residuals)
    freedom = max(rows - parameters, 1)
    second = float(np.sum(np.clip(residuals, -delta, delta) ** 2)) / freedom
    size = np.sort(np.abs(residuals))
    middle = float(size[min(parameters + freedom // 2, rows - 1)]) / scipy.special.ndtri(0.75)
    scale = min(middle, float(np.sqrt(np.sum(residuals**2) / freedom))) or float(size[-1])
    window = max(delta, 1.06 * scale * rows**-0.2)
    inside = max(int(np.sum(size <= window)) - parameters, 1) / freedom
    return second, inside * delta / window


@dataclass(frozen=True)
class Covariance:
    """Of a fit's parameters, in the solver's coordinates.

    Attributes:
        matrix: covariance of the optimum.
        naive: inverse of the objective's expected curvature; `matrix` for an objective that is a log-likelihood.
        freedom: degrees of freedom of Student's t for intervals.
        method: what it assumes, in words.
    """

    matrix: Float[np.ndarray, "parameters parameters"] = field(repr=False)
    naive: Float[np.ndarray, "parameters parameters"] = field(repr=False)
    freedom: int
    method: str

    @property
    def correlation(self) -> Float[np.ndarray, "parameters parameters"]:
        """Of the parameters as the solver moves them: logarithms where their scale is LOG."""
        size = np.sqrt(np.diag(self.matrix))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(self.matrix / np.outer(size, size), -1.0, 1.0)

    def deviation(self, slope: Float[np.ndarray, " parameters"]) -> float:
        """Standard error of a quantity with these derivatives."""
        return float(np.sqrt(slope @ self.matrix @ slope))

    def rise(self, slope: Float[np.ndarray, " parameters"]) -> float:
        """What a quantity's squared standardised error costs: objective rises by half of it times chi-square of one.

        For independent residuals E[psi^2] / E[psi'] whatever the quantity; for clusters the ratio of its sandwich
        variance to its naive one (Kent 1982, Biometrika 69(1)).
        """
        return float(slope @ self.matrix @ slope) / max(float(slope @ self.naive @ slope), 1e-300)

    def quantile(self, level: float) -> float:
        """Student's t, two-sided."""
        return float(scipy.special.stdtrit(self.freedom, (1 + level) / 2))


def covariance(fit: Fit, *, clusters: Shaped[np.ndarray, " rows"] | None = None) -> Covariance:
    """The covariance of a fit's parameters.

    Args:
        fit: the fit.
        clusters: one label a fitted row, when rows with one label share their noise (checkpoints of one run): the
            score is then summed within each cluster first (Liang and Zeger 1986), with G - 1 degrees of freedom.

    Raises:
        ValueError: clusters of another length than the table, or fewer than two.
    """
    delta, size = fit.objective.threshold, len(fit.parameters)
    rows = len(fit.residuals)
    second, first = moments(fit.residuals, delta=delta, parameters=size)
    _, jacobian = sensitivity(fit.law, fit.columns, fit.theta[None])
    jacobian = jacobian[0]
    scale = np.linalg.norm(jacobian, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    inverse = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale), rcond=1e-14) / np.outer(scale, scale)
    naive = inverse / first
    if clusters is None:
        return Covariance(naive * second / first, naive, max(rows - size, 1), "independent residuals")
    index, groups = grouped(clusters, rows)
    score = np.zeros((groups, size))
    np.add.at(score, index, np.clip(fit.residuals, -delta, delta)[:, None] * jacobian)
    correction = groups / (groups - 1) * (rows - 1) / max(rows - size, 1)
    matrix = naive @ (score.T @ score) @ naive * correction
    return Covariance(matrix, naive, groups - 1, f"{groups} clusters")


def grouped(clusters: Shaped[np.ndarray, " rows"], rows: int) -> tuple[Float[np.ndarray, " rows"], int]:
    """Labels as numbers from zero on, and how many there are.

    Raises:
        ValueError: not one label a row, a missing label, or fewer than two clusters.
    """
    import pandas as pd

    labels = np.asarray(clusters)
    if labels.shape != (rows,):
        raise ValueError(f"clusters: {labels.size} labels for {rows} fitted runs; give one label a fitted run")
    index, names = pd.factorize(labels)
    if (index < 0).any():
        raise ValueError(f"clusters: {int((index < 0).sum())} of {rows} runs have no label")
    if len(names) < 2:
        raise ValueError(f"clusters: every run has the label {names[0]!r}; at least two clusters are needed")
    return index, len(names)
