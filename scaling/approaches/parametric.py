"""Approach 3: one law of N and D for the whole table, and the optimum it implies in closed form.

Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3 and eq. 4, here with C = k N^g D in place of C = 6 N D.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling import runs
from scaling.certainty.bootstrap import Bootstrap, bootstrap
from scaling.estimate import Estimate
from scaling.fitting.fit import Objective, fit
from scaling.fitting.powerlaw import Compute, compute
from scaling.fitting.quantities import optimal_loss, optimal_params, optimal_tokens, params_exponent, tokens_exponent
from scaling.laws import CHINCHILLA

_AT_OPTIMUM = (optimal_params, optimal_tokens, optimal_loss)


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

    @property
    def a(self) -> Estimate:
        """Exponent of N_opt in C, beta / (alpha + g beta)."""
        return self.bootstrap.quantity(params_exponent(CHINCHILLA, self.cost))

    @property
    def b(self) -> Estimate:
        """Exponent of D_opt in C, alpha / (alpha + g beta)."""
        return self.bootstrap.quantity(tokens_exponent(CHINCHILLA, self.cost))

    def optimum(self, flops: float) -> tuple[Estimate, Estimate, Estimate]:
        """Parameters, tokens and expected loss at the optimum of a budget."""
        return tuple(self.bootstrap.quantity(each(CHINCHILLA, self.cost, flops)) for each in _AT_OPTIMUM)

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
    best = fit(runs.Table(frame), CHINCHILLA, objective=objective)
    cost = compute(*(frame[name].to_numpy(np.float64) for name in ("params", "tokens", "flops")))
    return Parametric(bootstrap(best, resamples=resamples, seed=seed), cost, max(noise, best.sigma))
