"""How sure a fit is: draws of its parameters by bootstrap or Laplace, intervals of anything they determine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import scipy.special
from jaxtyping import Float, Shaped

from scaling.certainty.constrained import Held
from scaling.certainty.covariance import MANY, Covariance, Noise, covariance, grouped, window
from scaling.certainty.replicates import Replicates
from scaling.estimate import LEVEL, Estimate, percentile
from scaling.fitting import solver
from scaling.fitting.differences import sensitivity
from scaling.fitting.fit import Fit
from scaling.fitting.quantities import Quantity, parameter
from scaling.laws import Scale

_CELLS = 2**21  # resamples x rows drawn at once: 16 MiB of weights or losses, whatever the number of resamples


class Resampling(Enum):
    """What the bootstrap draws."""

    PAIRS = "pairs"
    """Whole runs, or whole clusters of runs, with replacement: assumes nothing of the residuals, needs many.

    Of 20 clusters too wide: 98 to 100 % held the truth in 60 simulated tables, nominal 95 %, and 92 to 97 by profile.
    """
    RESIDUAL = "residual"
    """Residuals, put back on the fitted losses: keeps the design, right for few designed runs of equal noise."""
    WILD = "wild"
    """Own residuals times a random factor, one a run or cluster: keeps the design, and noise that differs by run.

    Made for least squares: with a delta far below the residuals, usual from 100 runs on, intervals are too narrow (87
    to 96 % held the truth in 150 simulated tables of 240 runs, nominal 95 %). Draw PAIRS there.
    """


class Multiplier(Enum):
    """The random factor of the wild bootstrap, of mean 0 and variance 1."""

    RADEMACHER = "rademacher"
    """-1 or 1 with equal probability: keeps the residuals' size, so right for robust objectives too."""
    MAMMEN = "mammen"
    """(1 -+ sqrt 5) / 2, which keeps the skew of the residuals; for least squares (Mammen 1993)."""

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
        """Independent factors."""
        if self is Multiplier.RADEMACHER:
            return 2.0 * generator.integers(2, size=shape) - 1.0
        root = np.sqrt(5.0)
        return np.where(generator.random(shape) < (root + 1) / (2 * root), (1 - root) / 2, (1 + root) / 2)


@dataclass(frozen=True, kw_only=True)
class Draws(ABC):
    """Draws of a law's parameters, and intervals of whatever follows from them.

    Attributes:
        fit: the fit to the whole table.
        samples: parameters, one row a draw, in the order of `fit.law.names`.
        spread: factor by which percentile intervals are stretched: Student's t over the normal quantile, since the
            residual variance of a small table is itself uncertain.
        level: probability the intervals claim.
    """

    fit: Fit
    samples: Float[np.ndarray, "draws parameters"] = field(repr=False)
    spread: float = 1.0
    level: float = LEVEL

    @property
    @abstractmethod
    def method(self) -> str:
        """The intervals in words."""

    @property
    def by_name(self) -> dict[str, Float[np.ndarray, " draws"]]:
        """The draws of each parameter."""
        return dict(zip(self.fit.law.names, self.samples.T, strict=True))

    def interval(self, name: str) -> Estimate:
        """Of one parameter.

        Raises:
            ValueError: the law has no such parameter.
        """
        parameter(self.fit.law, name)
        index = self.fit.law.names.index(name)
        samples, value = self.samples[:, index], self.fit.parameters[name]
        if self.fit.law.parameters[index].scale is Scale.LOG:
            return self._positive(samples, value)
        return self.of(samples, value)

    def quantity(self, quantity: Quantity) -> Estimate:
        """Of anything the parameters determine."""
        if quantity.name in self.fit.law.names:
            return self.interval(quantity.name)
        samples = quantity(self.by_name)
        value = float(quantity(self.fit.parameters))
        return self._positive(samples, value) if quantity.positive else self.of(samples, value)

    def of(self, samples: Float[np.ndarray, " draws"], value: float) -> Estimate:
        """Of any quantity computed from each row of `samples`, `value` being the same from the fit."""
        low, high = percentile(samples, value, spread=self.spread, level=self.level)
        return Estimate(float(value), float(low), float(high))

    def _positive(self, samples: np.ndarray, value: float) -> Estimate:
        """An interval in the logarithm, so that stretching it never crosses zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            log = self.of(np.log(samples), float(np.log(value)))
        return Estimate(float(value), float(np.exp(log.low)), float(np.exp(log.high)))

    def draws(self, columns: Mapping[str, Float[np.ndarray, "*points"]]) -> Float[np.ndarray, "draws *points"]:
        """Loss predicted by every draw at some columns."""
        shape = (len(self.samples),) + (1,) * np.ndim(next(iter(columns.values())))
        parameters = {name: self.samples[:, i].reshape(shape) for i, name in enumerate(self.fit.law.names)}
        return self.fit.law(columns, parameters)

    def expected(self, columns: Mapping[str, float]) -> Estimate:
        """Expected loss at one point: the uncertainty of the parameters alone."""
        return self.of(self.draws(columns), float(self.fit.predict(columns)))

    def new_run(
        self, columns: Mapping[str, float], *, loss_se: float = 0.0, noise: float | Replicates | None = None
    ) -> Estimate:
        """The interval in which the measured loss of one new run should fall.

        Args:
            columns: of the new run.
            loss_se: standard error of its measured loss, nats, if it is measured on other text than the table's runs
                (the table's residuals already hold the noise of measuring on the same text).
            noise: standard deviation of the log residual of a new run, or the replicates of the table (which can raise
                it above the residuals', not lower it: what the law misses, a new run misses too); that of the fit
                unless said otherwise.

        Returns:
            The prediction, and parameter uncertainty with the noise of one run on top. It does not know of ways in
            which the law itself may stop holding.
        """
        value = float(self.fit.predict(columns))
        if isinstance(noise, Replicates):
            noise = noise.new_run(self.fit)
        noise = np.hypot(self.fit.sigma if noise is None else noise, loss_se / value)
        log = np.log(self.draws(columns))
        # Quantiles of the normal at evenly spread probabilities, paired at random with the draws.
        count = len(log)
        order = np.random.default_rng(count).permutation(count)
        shocks = scipy.special.ndtri((order + 0.5) / count) * noise
        estimate = self.of(log + shocks, np.log(value))
        return Estimate(value, float(np.exp(estimate.low)), float(np.exp(estimate.high)))


@dataclass(frozen=True, kw_only=True)
class Bootstrap(Draws):
    """Refits of a law to resampled tables.

    Attributes:
        resampled: what was drawn, in words.
        failed: resamples whose refit was not an optimum, left out of `samples`.
    """

    resampled: str
    failed: int = 0

    @property
    def method(self) -> str:
        """The intervals in words."""
        return f"bootstrap of {self.resampled}, {len(self.samples)} resamples, {self.level:.0%}"


@dataclass(frozen=True, kw_only=True)
class Laplace(Draws):
    """Student's t with the covariance of the optimum, in the solver's coordinates.

    Attributes:
        covariance: of the optimum; intervals of parameters and quantities are its exact quantiles, not the draws'.
    """

    covariance: Covariance

    @property
    def method(self) -> str:
        """The intervals in words."""
        return f"Laplace, {self.covariance.method}, {self.level:.0%}"

    def interval(self, name: str) -> Estimate:
        """Of one parameter, symmetric in the solver's coordinates and cut at the bounds."""
        value = parameter(self.fit.law, name)(self.fit.parameters)
        index = self.fit.law.names.index(name)
        reach = self.covariance.quantile(self.level) * np.sqrt(self.covariance.matrix[index, index])
        ends = np.repeat(self.fit.theta[None], 2, axis=0)
        ends[:, index] = np.clip(
            ends[:, index] + reach * np.array([-1, 1]), *(b[index] for b in solver.limits(self.fit.law))
        )
        low, high = solver.decode(self.fit.law, ends)[:, index]
        return Estimate(float(value), float(low), float(high))

    def quantity(self, quantity: Quantity) -> Estimate:
        """Of anything the parameters determine, by the delta method, in the logarithm where it is positive."""
        if quantity.name in self.fit.law.names:
            return self.interval(quantity.name)
        held, first = Held(self.fit, (quantity,)), np.zeros(1, int)
        centre = held.held(self.fit.theta[None], first)[0]
        reach = self.covariance.quantile(self.level) * self.covariance.deviation(
            held.slope(self.fit.theta[None], first)[0]
        )
        ends = np.array([centre, centre - reach, centre + reach])
        return Estimate(*map(float, np.exp(ends) if quantity.positive else ends))


def bootstrap(
    fit: Fit,
    *,
    resampling: Resampling | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
    clusters: Shaped[np.ndarray, " rows"] | None = None,
    multiplier: Multiplier = Multiplier.RADEMACHER,
) -> Bootstrap:
    """Refit a law to resampled tables, each to its own optimum.

    Args:
        fit: the fit to the whole table.
        resampling: what is drawn; unless said otherwise PAIRS from 100 runs on and for clusters, RESIDUAL below.
        resamples: number of tables drawn; memory does not grow with it beyond the samples themselves.
        seed: of the draws; the same seed gives the same intervals to the last bit.
        level: probability the intervals claim.
        clusters: one label a fitted run, where runs with one label share their noise (checkpoints of one training, for
            one): PAIRS then draws whole clusters, and WILD one factor a cluster.
        multiplier: of WILD.

    Returns:
        The samples. Residuals that are put back are inflated, since a fit with p parameters shrinks them: RESIDUAL by
        sqrt(n / (n - p)), WILD each by 1 / (1 - its leverage) (Davidson and Flachaire 2008). Where delta is small
        against them they are smoothed too (De Angelis, Hall and Young 1993).

    Raises:
        ValueError: fewer than 20 resamples, RESIDUAL with clusters, labels that do not fit the table, or refits that
            mostly fail.
    """
    if resamples < 20:
        raise ValueError(f"{resamples} resamples cannot give an interval; use at least 20, better 1000")
    rows, size = len(fit.residuals), len(fit.parameters)
    groups = None if clusters is None else grouped(clusters, rows)
    units = rows if groups is None else groups[1]
    if resampling is None:
        resampling = Resampling.PAIRS if rows >= MANY or groups is not None else Resampling.RESIDUAL
    if resampling is Resampling.RESIDUAL and groups is not None:
        raise ValueError("residuals of clustered runs cannot be exchanged; use Resampling.PAIRS or Resampling.WILD")
    draw = _drawer(fit, resampling, groups, multiplier, np.random.default_rng(seed))
    theta, good = np.empty((resamples, size)), np.empty(resamples, bool)
    chunk = max(1, _CELLS // rows)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        target, weights = draw(count)
        solution = solver.minimise(
            fit.law,
            fit.columns,
            theta=np.repeat(fit.theta[None], count, axis=0),
            target=target,
            weights=weights,
            delta=fit.objective.threshold,
        )
        theta[start : start + count] = solution.theta
        good[start : start + count] = np.isfinite(solution.value) & (solution.slack < 1e-6)
    if good.mean() < 0.5:
        why = " ".join(fit.warnings) or "the table does not determine its parameters."
        raise ValueError(
            f"no interval can be given for law {fit.law.name!r}, {int((~good).sum())} of {resamples} resamples did not "
            f"reach an optimum: {why}"
        )
    what = {
        Resampling.PAIRS: "whole runs" if groups is None else f"{units} whole clusters",
        Resampling.RESIDUAL: "residuals",
        Resampling.WILD: "signs of residuals" if groups is None else f"signs of the residuals of {units} clusters",
    }
    freedom = rows - size if groups is None else units - 1
    return Bootstrap(
        fit=fit,
        samples=solver.decode(fit.law, theta[good]),
        resampled=what[resampling],
        spread=1.0 if resampling is Resampling.PAIRS else small_sample(freedom, level=level),
        failed=int((~good).sum()),
        level=level,
    )


def _drawer(fit: Fit, resampling: Resampling, groups: tuple[np.ndarray, int] | None, multiplier: Multiplier, generator):
    """A function of a count that returns that many tables: log losses and weights, one row where all share it."""
    residuals, rows, size = fit.residuals, len(fit.residuals), len(fit.parameters)
    index, units = groups or (np.arange(rows), rows)
    predicted, weights = np.log(fit.predict(fit.columns)), fit.weights[None]
    root = np.sqrt(fit.weights)  # noise is taken to go as its inverse
    centred = (root * residuals - np.mean(root * residuals)) * np.sqrt(rows / max(rows - size, 1))
    freed = root * residuals / (1 - np.minimum(_leverage(fit), 0.9))
    # A robust optimum hangs on the few residuals within delta, and in every drawn table they lie at the same few
    # places: smooth them over the width to which their density is known, keeping the variance.
    width = window(residuals, delta=0.0, parameters=size)
    width = width if fit.objective.threshold < width else 0.0
    kept = 1 / np.sqrt(1 + width**2 / np.mean(centred**2)) if width else 1.0

    def lay(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        smooth = (drawn + width * generator.standard_normal(drawn.shape)) * kept if width else drawn
        return predicted + smooth / root, weights

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        if resampling is Resampling.PAIRS:
            drawn = generator.multinomial(units, np.full(units, 1 / units), size=count).astype(np.float64)
            return (predicted + residuals)[None], drawn[:, index] * weights
        if resampling is Resampling.RESIDUAL:
            return lay(centred[generator.integers(rows, size=(count, rows))])
        return lay(freed * multiplier.draw(generator, (count, units))[:, index])

    return draw


def _leverage(fit: Fit) -> Float[np.ndarray, " rows"]:
    """How much of each run's own noise its fitted value follows: the diagonal of J (J'J)^-1 J', rows weighed."""
    jacobian = np.sqrt(fit.weights)[:, None] * sensitivity(fit.law, fit.columns, fit.theta[None])[1][0]
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    return np.einsum("rp,pq,rq->r", scaled, np.linalg.pinv(scaled.T @ scaled), scaled)


def laplace(
    fit: Fit,
    *,
    draws: int = 4000,
    seed: int = 0,
    level: float = LEVEL,
    clusters: Shaped[np.ndarray, " rows"] | None = None,
    noise: Noise | None = None,
) -> Laplace:
    """Draw parameters from the quadratic picture of the fit: instant, and as good as the objective is quadratic.

    Args:
        fit: the fit.
        draws: number of draws.
        seed: of the draws.
        level: probability the intervals claim.
        clusters: as for `covariance`.
        noise: as for `covariance`.

    Raises:
        ValueError: labels that do not fit the table.
    """
    found = covariance(fit, clusters=clusters, noise=noise)
    generator = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(found.matrix)
    normal = generator.standard_normal((draws, len(values))) * np.sqrt(np.maximum(values, 0.0))
    wide = np.sqrt(found.freedom / generator.chisquare(found.freedom, size=(draws, 1)))
    theta = np.clip(fit.theta + (normal @ vectors.T) * wide, *solver.limits(fit.law))
    return Laplace(fit=fit, samples=solver.decode(fit.law, theta), level=level, covariance=found)


def small_sample(freedom: int, *, level: float = LEVEL) -> float:
    """Student's t over the normal quantile, with the degrees of freedom left to the residuals."""
    upper = (1 + level) / 2
    return float(scipy.special.stdtrit(max(freedom, 1), upper) / scipy.special.ndtri(upper))
