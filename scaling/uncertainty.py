"""How sure a fit is: bootstrap of the parameters, and the interval a new run should fall in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import scipy.special
from jaxtyping import Float

from scaling import solver
from scaling.estimate import LEVEL, Estimate, percentile
from scaling.fitting import Fit
from scaling.quantities import Quantity


class Resampling(Enum):
    """What the bootstrap draws."""

    PAIRS = "pairs"
    """Whole runs, with replacement: assumes nothing of the residuals, needs many runs."""
    RESIDUAL = "residual"
    """Residuals, put back on the fitted losses: keeps the design, right for few designed runs."""


@dataclass(frozen=True)
class Bootstrap:
    """Refits of a law to resampled tables.

    Attributes:
        fit: the fit to the whole table.
        samples: parameters, one row a resample, in the order of `fit.law.names`.
        resampled: what was drawn, in words.
        spread: factor by which percentile intervals are stretched: Student's t over the normal quantile, since the
            residual variance of a small table is itself uncertain.
        failed: resamples whose refit was not an optimum, left out of `samples`.
        level: probability the intervals claim.
    """

    fit: Fit
    samples: Float[np.ndarray, "resamples parameters"] = field(repr=False)
    resampled: str
    spread: float = 1.0
    failed: int = 0
    level: float = LEVEL

    @property
    def method(self) -> str:
        """The intervals in words."""
        return f"bootstrap of {self.resampled}, {len(self.samples)} resamples, {self.level:.0%}"

    def interval(self, name: str) -> Estimate:
        """Of one parameter."""
        index = self.fit.law.names.index(name)
        return self.of(self.samples[:, index], self.fit.parameters[name])

    def of(self, samples: Float[np.ndarray, " resamples"], value: float) -> Estimate:
        """Of any quantity computed from each row of `samples`, `value` being the same from the fit."""
        low, high = percentile(samples, value, spread=self.spread, level=self.level)
        return Estimate(float(value), float(low), float(high))

    def quantity(self, quantity: Quantity) -> Estimate:
        """Of what the parameters determine; in the logarithm where it is positive, so that no interval crosses zero."""
        value = float(quantity(self.fit.parameters))
        draws = quantity(dict(zip(self.fit.law.names, self.samples.T, strict=True)))
        if not quantity.positive:
            return self.of(draws, value)
        log = self.of(np.log(draws), np.log(value))
        return Estimate(value, float(np.exp(log.low)), float(np.exp(log.high)))

    def draws(self, columns: Mapping[str, Float[np.ndarray, "*points"]]) -> Float[np.ndarray, "resamples *points"]:
        """Loss predicted by every resample at some columns."""
        shape = (len(self.samples),) + (1,) * np.ndim(next(iter(columns.values())))
        parameters = {name: self.samples[:, i].reshape(shape) for i, name in enumerate(self.fit.law.names)}
        return self.fit.law(columns, parameters)

    def expected(self, columns: Mapping[str, float]) -> Estimate:
        """Expected loss at one point: the uncertainty of the parameters alone."""
        return self.of(self.draws(columns), float(self.fit.predict(columns)))

    def new_run(self, columns: Mapping[str, float], *, loss_se: float = 0.0, noise: float | None = None) -> Estimate:
        """The interval in which the measured loss of one new run should fall.

        Args:
            columns: of the new run.
            loss_se: standard error of its measured loss, nats, if it is measured on other text than the table's runs
                (the table's residuals already hold the noise of measuring on the same text).
            noise: standard deviation of the log residual of a new run; that of the fit unless said otherwise.

        Returns:
            The prediction, and parameter uncertainty with the noise of one run on top. It does not know of ways in
            which the law itself may stop holding.
        """
        value = float(self.fit.predict(columns))
        noise = np.hypot(self.fit.sigma if noise is None else noise, loss_se / value)
        log = np.log(self.draws(columns))
        # Quantiles of the normal at evenly spread probabilities, paired at random with the draws.
        count = len(log)
        order = np.random.default_rng(count).permutation(count)
        shocks = scipy.special.ndtri((order + 0.5) / count) * noise
        estimate = self.of(log + shocks, np.log(value))
        return Estimate(value, float(np.exp(estimate.low)), float(np.exp(estimate.high)))


def bootstrap(
    fit: Fit, *, resampling: Resampling | None = None, resamples: int = 1000, seed: int = 0, level: float = LEVEL
) -> Bootstrap:
    """Refit a law to resampled tables, each to its own optimum.

    Args:
        fit: the fit to the whole table.
        resampling: PAIRS or RESIDUAL; unless said otherwise PAIRS from 100 runs on and RESIDUAL below.
        resamples: number of tables drawn.
        seed: of the draws; the same seed gives the same intervals to the last bit.
        level: probability the intervals claim.

    Returns:
        The samples. Residuals are inflated by sqrt(n / (n - p)), since a fit with p parameters shrinks them.

    Raises:
        ValueError: fewer than 20 resamples, or refits that mostly fail.
    """
    if resamples < 20:
        raise ValueError(f"{resamples} resamples cannot give an interval; use at least 20, better 1000")
    rows = len(fit.residuals)
    resampling = resampling or (Resampling.PAIRS if rows >= 100 else Resampling.RESIDUAL)
    generator = np.random.default_rng(seed)
    predicted = np.log(fit.predict(fit.columns))
    if resampling is Resampling.PAIRS:
        target = (predicted + fit.residuals)[None]
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)
    else:
        inflated = fit.residuals - fit.residuals.mean()
        inflated *= np.sqrt(rows / max(rows - len(fit.parameters), 1))
        target = predicted + inflated[generator.integers(rows, size=(resamples, rows))]
        weights = np.ones((resamples, rows))
    solution = solver.minimise(
        fit.law,
        fit.columns,
        theta=np.repeat(fit.theta[None], resamples, axis=0),
        target=target,
        weights=weights,
        delta=fit.objective.threshold,
    )
    good = np.isfinite(solution.value) & (solution.slack < 1e-6)
    if good.mean() < 0.5:
        why = fit.warnings[0] if fit.warnings else "the table does not determine its parameters."
        raise ValueError(
            f"no interval can be given for law {fit.law.name!r}, {int((~good).sum())} of {resamples} resamples did not "
            f"reach an optimum: {why}"
        )
    return Bootstrap(
        fit=fit,
        samples=solver.decode(fit.law, solution.theta[good]),
        resampled="whole runs" if resampling is Resampling.PAIRS else "residuals",
        spread=1.0 if resampling is Resampling.PAIRS else small_sample(rows - len(fit.parameters), level=level),
        failed=int((~good).sum()),
        level=level,
    )


def small_sample(freedom: int, *, level: float = LEVEL) -> float:
    """Student's t over the normal quantile, with the degrees of freedom left to the residuals."""
    upper = (1 + level) / 2
    return float(scipy.special.stdtrit(max(freedom, 1), upper) / scipy.special.ndtri(upper))
