"""Approach 3: one law of N and D for the whole table, and the optimum it implies in closed form.

Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3 and eq. 4, here with C = k N^g D in place of C = 6 N D.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.fit import Objective, fit_law
from scaling.laws import CHINCHILLA
from scaling.powerlaw import Compute, compute
from scaling.uncertainty import Bootstrap, Estimate, bootstrap


def optimum(parameters: Mapping[str, np.ndarray], cost: Compute, flops: float):
    """N and D that minimise the Chinchilla law at a budget.

    Setting the derivative along C = k N^g D to zero gives N^(alpha + g beta) = (alpha A / (g beta B)) (C / k)^beta.

    Args:
        parameters: A, B, alpha, beta; arrays give an array of optima.
        cost: what a token costs.
        flops: the budget, in the FLOPs `cost` was read from.

    Returns:
        Parameters and tokens.
    """
    big_a, big_b, alpha, beta = (np.asarray(parameters[name]) for name in ("A", "B", "alpha", "beta"))
    total = alpha + cost.g * beta
    log_n = (np.log(alpha * big_a / (cost.g * beta * big_b)) + beta * np.log(flops / cost.k)) / total
    params = np.exp(log_n)
    return params, cost.tokens(flops, params)


@dataclass(frozen=True)
class Parametric:
    """Approach 3 on one table.

    Attributes:
        bootstrap: the Chinchilla fit and its resamples.
        cost: C = k N^g D of the table.
        noise: standard deviation of a new run's log residual.
    """

    bootstrap: Bootstrap
    cost: Compute
    noise: float

    def _samples(self) -> dict[str, np.ndarray]:
        return dict(zip(self.bootstrap.fit.law.names, self.bootstrap.samples.T, strict=True))

    @property
    def a(self) -> Estimate:
        """Exponent of N_opt in C, beta / (alpha + g beta)."""
        exponent = lambda p: p["beta"] / (p["alpha"] + self.cost.g * p["beta"])  # noqa: E731
        return self.bootstrap.of(exponent(self._samples()), exponent(self.bootstrap.fit.parameters))

    @property
    def b(self) -> Estimate:
        """Exponent of D_opt in C, alpha / (alpha + g beta)."""
        exponent = lambda p: p["alpha"] / (p["alpha"] + self.cost.g * p["beta"])  # noqa: E731
        return self.bootstrap.of(exponent(self._samples()), exponent(self.bootstrap.fit.parameters))

    def optimum(self, flops: float) -> tuple[Estimate, Estimate, Estimate]:
        """Parameters, tokens and expected loss at the optimum of a budget."""
        samples = self._samples()
        values = optimum(self.bootstrap.fit.parameters, self.cost, flops)
        draws = optimum(samples, self.cost, flops)
        law = self.bootstrap.fit.law
        loss = law(dict(zip(law.columns, values, strict=True)), self.bootstrap.fit.parameters)
        losses = law(dict(zip(law.columns, draws, strict=True)), samples)
        return (
            self._positive(draws[0], values[0]),
            self._positive(draws[1], values[1]),
            self.bootstrap.of(losses, float(loss)),
        )

    def _positive(self, draws: np.ndarray, value: float) -> Estimate:
        """An interval in the logarithm, so that stretching it never crosses zero."""
        log = self.bootstrap.of(np.log(draws), float(np.log(value)))
        return Estimate(float(value), float(np.exp(log.low)), float(np.exp(log.high)))

    def predict(self, params: float, tokens: float, *, loss_se: float = 0.0) -> Estimate:
        """The interval for the measured loss of one new run."""
        return self.bootstrap.new_run({"params": params, "tokens": tokens}, loss_se=loss_se, noise=self.noise)


def parametric(
    frame: pd.DataFrame,
    *,
    objective: Objective | None = None,
    resamples: int = 1000,
    seed: int = 0,
    noise: float = 0.0,
) -> Parametric:
    """Fit approach 3.

    Args:
        frame: a checked table under its convention: columns `params`, `tokens`, `flops`, `loss`.
        objective: of the fit.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        noise: least standard deviation to grant a new run's log residual, from a test on runs left out.

    Returns:
        The fit with its resamples.

    Raises:
        ValueError: too few runs, or a table that does not determine the law.
    """
    best = fit_law(frame, CHINCHILLA, objective=objective)
    cost = compute(*(frame[name].to_numpy(np.float64) for name in ("params", "tokens", "flops")))
    return Parametric(bootstrap(best, resamples=resamples, seed=seed), cost, max(noise, best.sigma))
