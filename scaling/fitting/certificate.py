"""The certificate of a fit: evidence, from more than one side, that its parameters are the minimum of its objective.

Published fits are often not: a solver that stops early, in a valley or at a bound returns numbers that look like any
others. So the optimum is reached from many starts, its gradient is stated, and a second solver of another kind, on
derivatives computed another way, has to find the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from threading import Lock

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float

from scaling.fitting import solver
from scaling.fitting.differences import sensitivity
from scaling.laws import Law

_SLACK = 1e-9
_GRADIENT = 1e-6
_OBJECTIVE = 1e-6
_PARAMETERS = 1e-2
_CONDITION = 1e12
_NEARBY = 0.3  # standardised distance from the optimum of the second solver's first start: 5 % up
_RESTARTS = 4
_FLAT = 1e-8  # gradient, relative and whitened, at which it stops; differences know it to 1e-9
_ONE = Lock()  # SciPy's line search sets filters of warnings, which threads share


@dataclass(frozen=True)
class Agreement:
    """What a second solver found: BFGS from SciPy, in whitened parameters, with gradients by differences.

    Attributes:
        objective: its lowest objective less that of the fit, relative; negative where it found a lower one.
        parameters: largest relative difference of a parameter there.
        starts: where it began: near the optimum, and at some starting points of the fit.
    """

    objective: float
    parameters: float
    starts: int


@dataclass(frozen=True)
class Certificate:
    """Evidence that the parameters are the minimum of the objective.

    Attributes:
        slack: relative decrease of the objective that another step promises; below 1e-9 is an optimum.
        gradient: largest derivative of the objective, relative, each parameter in units of its own curvature (the
            cosine between residuals and a sensitivity); below 1e-6 is an optimum.
        share: of the starts, those that ended within 1e-6 of the lowest objective.
        starts: number of starts.
        second: what another solver found; objectives must agree to 1e-6 and parameters to 1 %.
        condition: condition number of the scaled Gauss-Newton matrix; above 1e12 the table does not determine
            the parameters.
        at_bounds: parameters that ended at a bound.
    """

    slack: float
    gradient: float
    share: float
    starts: int
    second: Agreement
    condition: float
    at_bounds: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """An optimum, found twice, inside its bounds, determined by the table."""
        return not self.failures()

    def failures(self) -> tuple[str, ...]:
        """What speaks against the fit, one sentence each; empty when nothing does."""
        found = []
        if not (self.slack < _SLACK and self.gradient < _GRADIENT):
            found.append(
                f"the solver did not reach an optimum (a further step promises {self.slack:.1e} of the objective, "
                f"scaled gradient {self.gradient:.1e})."
            )
        if self.second.objective < -_OBJECTIVE:
            found.append(f"a second solver found an objective lower by {-self.second.objective:.1e} of it.")
        elif not (self.second.objective < _OBJECTIVE and self.second.parameters < _PARAMETERS):
            found.append(
                f"a second solver did not confirm it: objective {self.second.objective:.1e} higher, parameters up to "
                f"{self.second.parameters:.1e} apart, relative."
            )
        if self.starts > 1 and round(self.share * self.starts) < 2:
            found.append(f"only one of {self.starts} starts reached the lowest objective.")
        found += [
            f"{name} ended at the bound of its range: the table does not determine it." for name in self.at_bounds
        ]
        if not self.condition < _CONDITION:
            found.append(
                f"the table does not determine the parameters separately (condition number {self.condition:.1e})."
            )
        return tuple(found)

    def to_dict(self) -> dict:
        """Plain types, for JSON; what is not finite is None."""
        plain = asdict(self) | {"at_bounds": [*self.at_bounds]}
        plain["second"] |= {"solver": "BFGS"}
        for part in (plain, plain["second"]):
            part |= {k: None for k, v in part.items() if isinstance(v, float) and not np.isfinite(v)}
        return {"passed": self.passed} | plain


def at_bounds(law: Law, theta: Float[np.ndarray, " parameters"]) -> Bool[np.ndarray, " parameters"]:
    """Which parameters are at a bound of their range."""
    low, high = solver.limits(law)
    return np.isclose(theta, low, rtol=0, atol=1e-9) | np.isclose(theta, high, rtol=1e-9)


def condition(gauss: Float[np.ndarray, "parameters parameters"]) -> float:
    """Condition number of a Gauss-Newton matrix in parameters scaled to unit curvature; inf when it is singular."""
    size = np.sqrt(np.diag(gauss))
    if not (np.isfinite(gauss).all() and (size > 0).all()):
        return float("inf")
    spread = np.linalg.eigvalsh(gauss / np.outer(size, size))
    return float(spread[-1] / spread[0]) if spread[0] > 0 else float("inf")


def second_opinion(
    law: Law,
    columns: Mapping[str, Float[np.ndarray, "rows ..."]],
    *,
    target: Float[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    delta: float,
    solution: solver.Solution,
    starts: Float[np.ndarray, "starts parameters"],
) -> Agreement:
    """Minimise the same objective by another method and compare.

    Args:
        law: the law.
        columns: its columns.
        target: log loss.
        weights: row weights.
        delta: of the Huber loss.
        solution: of this one problem, a batch of one.
        starts: where to begin, besides near the optimum; in the solver's coordinates.
    """
    best, value = solution.theta[0], float(solution.value[0])
    floor = max(value, 1e-20 * float(weights.sum()))  # a table without noise has an objective of rounding errors
    free = ~at_bounds(law, best)
    whiten = _whitening(solution, free, floor)

    def place(z):
        theta = best.copy()
        theta[free] += whiten @ z
        return theta

    def relative(z):
        logs, jacobian = sensitivity(law, columns, place(z)[None])
        residuals = target - logs[0]
        size = np.abs(residuals)
        found = float(weights @ np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))) / floor
        gradient = -whiten.T @ ((weights * np.clip(residuals, -delta, delta)) @ jacobian[0])[free] / floor
        return (found, gradient) if np.isfinite(found) and np.isfinite(gradient).all() else (1e300, np.zeros_like(z))

    near = np.full(free.sum(), _NEARBY / np.sqrt(max(free.sum(), 1))) * (-1.0) ** np.arange(free.sum())
    inverse = np.linalg.pinv(whiten)
    ends = []
    with _ONE, np.errstate(all="ignore"):
        for begin in (near, *(inverse @ (start - best)[free] for start in starts)):
            end = scipy.optimize.minimize(relative, begin, jac=True, method="BFGS", options={"gtol": _FLAT})
            for _ in range(_RESTARTS):  # without its memory BFGS goes on where its line search gave up
                before = end.fun
                end = scipy.optimize.minimize(relative, end.x, jac=True, method="BFGS", options={"gtol": _FLAT})
                if before - end.fun <= 1e-9 * abs(before):
                    break
            ends.append((end.fun, place(end.x)))
    lowest, theta = min(ends, key=lambda end: end[0])
    ours, theirs = solver.decode(law, best), solver.decode(law, theta)
    apart = np.abs(theirs - ours) / np.where(ours == 0, 1.0, np.abs(ours))
    return Agreement(objective=float(lowest - value / floor), parameters=float(apart.max()), starts=len(ends))


def _whitening(solution: solver.Solution, free: np.ndarray, floor: float) -> np.ndarray:
    """Steps of parameters that each raise the objective, relative, by half of their squared length."""
    for matrix in (solution.hessian[0], solution.gauss[0]):
        matrix = matrix[np.ix_(free, free)] / floor
        size = np.sqrt(np.abs(np.diag(matrix)))
        size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
        spread, axes = np.linalg.eigh(np.nan_to_num(matrix / np.outer(size, size)))
        if len(spread) and spread[0] > 0:
            break
    spread = np.maximum(spread, 1e-12 * max(spread[-1], 1e-300)) if len(spread) else spread
    return (axes / np.sqrt(spread)) / size[:, None]
