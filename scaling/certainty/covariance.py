"""The quadratic picture of a fit: how predictions move with the parameters, and the covariance of the optimum.

The fitter's objective is a sum of rho(r) over log residuals r, with psi = rho'. It is no log-likelihood: near least
absolute deviations its curvature says nothing about the noise. Two moments of the residuals turn it into one,

    E[psi^2], the noise of the score, and E[psi'], the curvature of the objective,

so that with J the derivative of the log prediction, the covariance of the optimum is E[psi^2] / E[psi']^2 (J'J)^-1
(Huber 1973, Annals of Statistics 1(5), section 4), and the objective rises above its minimum as
E[psi^2] / (2 E[psi']) times chi-square (Ronchetti 1982; Hampel et al. 1986, Robust Statistics, section 7.2).
Where noise differs from run to run both moments are taken run by run, which gives the sandwich of H = sum psi' J J' and
sum psi^2 J J' (Powell 1991 for least absolute deviations).
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import scipy.special
from jaxtyping import Float, Shaped

from scaling.fitting.differences import sensitivity
from scaling.fitting.fit import Fit

MANY = 100
"""Runs from which on nothing need be assumed of their noise: each speaks for itself."""

LARGE = 2**13
"""Runs from which on refitting is dear and the quadratic picture exact enough."""


class Noise(Enum):
    """What is assumed of the residuals."""

    EQUAL = "equal"
    """Every run's noise is alike, but for the weights of the fit."""
    DIFFERING = "differing"
    """Noise may differ with size or data; needs many runs."""


def window(residuals: Float[np.ndarray, " rows"], *, delta: float, parameters: int) -> float:
    """Within what distance of zero residuals are counted to estimate E[psi'].

    psi' is 1 within delta and 0 outside, so E[psi'] is a density times 2 delta. With a small delta few residuals fall
    inside, and they are counted over a normal reference bandwidth instead.
    """
    rows = len(residuals)
    freedom = max(rows - parameters, 1)
    size = np.sort(np.abs(residuals))
    middle = float(size[min(parameters + freedom // 2, rows - 1)]) / scipy.special.ndtri(0.75)
    scale = min(middle, float(np.sqrt(np.sum(residuals**2) / freedom))) or float(size[-1])
    return max(delta, 1.06 * scale * rows**-0.2)


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
        naive = float(slope @ self.naive @ slope)
        if naive > 0 and np.isfinite(naive):
            return float(slope @ self.matrix @ slope) / naive
        # The table says nothing of this quantity; what the others cost will do.
        return float(np.trace(self.matrix @ np.linalg.pinv(self.naive)) / max(np.linalg.matrix_rank(self.naive), 1))

    def quantile(self, level: float) -> float:
        """Student's t, two-sided."""
        return float(scipy.special.stdtrit(self.freedom, (1 + level) / 2))


def covariance(
    fit: Fit, *, clusters: Shaped[np.ndarray, " rows"] | None = None, noise: Noise | None = None
) -> Covariance:
    """The covariance of a fit's parameters.

    About as many residuals as parameters are zero for no other reason than that a robust fit passes through them;
    they are not counted in E[psi'], as parameters are not in E[psi^2].

    Args:
        fit: the fit.
        clusters: one label a fitted row, when rows with one label share their noise (checkpoints of one run): the
            score is then summed within each cluster first (Liang and Zeger 1986), with G - 1 degrees of freedom.
        noise: what is assumed of it; unless said otherwise DIFFERING from 100 runs on and EQUAL below.

    Raises:
        ValueError: clusters of another length than the table, or fewer than two.
    """
    delta, size = fit.objective.threshold, len(fit.parameters)
    residuals, rows = fit.residuals, len(fit.residuals)
    freedom = max(rows - size, 1)
    noise = noise or (Noise.DIFFERING if rows >= MANY else Noise.EQUAL)
    jacobian = sensitivity(fit.law, fit.columns, fit.theta[None])[1][0]
    psi = np.clip(residuals, -delta, delta)
    score = (fit.weights * psi)[:, None] * jacobian
    heavy = np.sqrt(fit.weights)[:, None] * jacobian
    wide = window(residuals, delta=delta, parameters=size)
    inside = np.abs(residuals) <= wide
    counted = max(int(inside.sum()) - size, 1)
    if noise is Noise.EQUAL:
        naive = _inverse(heavy) * freedom / counted * wide / delta
        matrix = naive * (np.sum(fit.weights * psi**2) / freedom) / (counted / freedom * delta / wide)
    else:
        naive = _inverse(heavy[inside]) * (inside.sum() / counted) * (freedom / rows) * wide / delta
        matrix = _sandwich(naive, score) * rows / freedom
    if clusters is None:
        return Covariance(matrix, naive, freedom, f"residuals of {noise.value} noise")
    index, groups = grouped(clusters, rows)
    summed = np.zeros((groups, size))
    np.add.at(summed, index, score)
    correction = groups / (groups - 1) * (rows - 1) / freedom
    return Covariance(_sandwich(naive, summed) * correction, naive, groups - 1, f"{groups} clusters")


def _inverse(jacobian: np.ndarray) -> np.ndarray:
    """(J'J)^-1, equilibrated; a pseudo-inverse where columns are dependent."""
    scale = np.linalg.norm(jacobian, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    return np.linalg.pinv((jacobian / scale).T @ (jacobian / scale), rcond=1e-14) / np.outer(scale, scale)


def _sandwich(bread: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return bread @ (scores.T @ scores) @ bread


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
        raise ValueError(f"clusters: every run has the label {str(names[0])!r}; at least two clusters are needed")
    return index, len(names)
