"""Straight lines in log-log: N_opt(C), D_opt(C), Kaplan's L(N), L(D), L(C), and the compute of a token."""

from dataclasses import dataclass, field

import numpy as np
import scipy.special
from jaxtyping import Float

from scaling.estimate import Estimate, percentile


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient x^exponent, with draws of both.

    Attributes:
        centre: log x about which the line is written, where height and slope are nearly independent.
        height: log y at the centre.
        exponent: slope.
        samples: draws of height and slope.
        points: number of points fitted.
        scatter: standard deviation of log y about the line.
        spread: factor by which percentile intervals are stretched for small samples.
    """

    centre: float
    height: float
    exponent: float
    samples: Float[np.ndarray, "draws 2"] = field(repr=False)
    points: int
    scatter: float
    spread: float = 1.0

    @property
    def coefficient(self) -> float:
        """Value at x = 1."""
        return float(np.exp(self.height - self.exponent * self.centre))

    @property
    def slope(self) -> Estimate:
        """The exponent with its interval."""
        low, high = percentile(self.samples[:, 1], self.exponent, spread=self.spread)
        return Estimate(self.exponent, float(low), float(high))

    def __call__(self, x: Float[np.ndarray, "*points"]) -> Float[np.ndarray, "*points"]:
        """Values at x."""
        return np.exp(self.height + self.exponent * (np.log(x) - self.centre))

    def at(self, x: float) -> Estimate:
        """Value at x, with its interval."""
        log = np.log(x) - self.centre
        value = self.height + self.exponent * log
        low, high = percentile(self.samples @ np.array([1.0, log]), value, spread=self.spread)
        return Estimate(float(np.exp(value)), float(np.exp(low)), float(np.exp(high)))

    def to_dict(self) -> dict:
        """A summary of plain types, for JSON."""
        return {
            "coefficient": self.coefficient,
            "exponent": self.slope.to_dict(),
            "points": self.points,
            "scatter": self.scatter,
        }


def line(
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    *,
    draws: Float[np.ndarray, "draws points"] | None = None,
    spread: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> PowerLaw:
    """Fit a power law by least squares in log-log.

    Args:
        x: positive values.
        y: positive values.
        draws: bootstrap values of log y, when y comes from fits of its own; otherwise the scatter about the line
            gives the uncertainty, by Student's t. Where the points scatter about the line more than the draws
            explain, the draws are widened to match.
        spread: stretch of percentile intervals for small samples behind `draws`.
        resamples: number of draws made when none are given.
        seed: of those draws.

    Returns:
        The line and draws of it.

    Raises:
        ValueError: fewer than two different x.
    """
    log_x, log_y = np.log(x), np.log(y)
    if len(log_x) < 2 or np.ptp(log_x) < 1e-9:
        raise ValueError("a power law needs points at two different values at least")
    centre = float(log_x.mean())
    design = np.stack([np.ones_like(log_x), log_x - centre], axis=1)
    inverse = np.linalg.pinv(design)
    height, slope = inverse @ log_y
    left = log_y - design @ (height, slope)
    freedom = len(log_x) - 2
    scatter = float(np.sqrt(left @ left / freedom)) if freedom else float("nan")
    size = np.sqrt(np.sum(inverse**2, axis=1))
    if draws is not None:
        samples = np.asarray(draws) @ inverse.T
        explained = np.sqrt(np.sum((draws - samples @ design.T) ** 2, axis=1).mean() / max(freedom, 1))
        wider = max(1.0, scatter / explained) if freedom and explained > 0 else 1.0
        middle = np.median(samples, axis=0)
        samples = middle + wider * (samples - middle)
    elif freedom:
        even = (np.arange(resamples) + 0.5) / resamples
        generator = np.random.default_rng(seed)
        shocks = np.stack([generator.permutation(scipy.special.stdtrit(freedom, even)) for _ in range(2)], axis=1)
        samples = np.array([height, slope]) + shocks * size * scatter
    else:
        samples = np.full((1, 2), np.nan)  # two points: a line, and no way to know how sure it is
    return PowerLaw(centre, float(height), float(slope), samples, len(log_x), scatter, spread)


@dataclass(frozen=True)
class Compute:
    """C = k N^g D: what a token costs, read off a table.

    Attention and head make the exact compute of small models differ from 6ND; with k and g in hand the closed form of
    the compute-optimal allocation still holds.

    Attributes:
        k: FLOPs per token and parameter at N = 1.
        g: exponent of N.
        scatter: standard deviation of log(C / (k N^g D)) over the table.
    """

    k: float
    g: float
    scatter: float

    def tokens(self, flops, params):
        """Tokens that a budget of FLOPs buys at a size."""
        return flops / (self.k * params**self.g)

    def flops(self, params, tokens):
        """FLOPs of a run."""
        return self.k * params**self.g * tokens

    def __str__(self) -> str:
        return "C = 6 N D" if (self.k, self.g) == (6, 1) else f"C = {self.k:.4g} N^{self.g:.4f} D"

    def to_dict(self) -> dict:
        """Plain numbers, for JSON."""
        return {"k": self.k, "g": self.g, "scatter": self.scatter}


def compute(
    params: Float[np.ndarray, " rows"], tokens: Float[np.ndarray, " rows"], flops: Float[np.ndarray, " rows"]
) -> Compute:
    """Read C = k N^g D off a table; exactly 6ND where the table says so, or where all runs have one size."""
    per_token = np.log(flops / tokens)
    if np.max(np.abs(per_token - np.log(6 * params))) < 1e-6:
        return Compute(6.0, 1.0, 0.0)
    if np.ptp(np.log(params)) < 1e-6:
        return Compute(float(np.exp(np.mean(per_token - np.log(params)))), 1.0, float(np.std(per_token)))
    law = line(params, np.exp(per_token))
    return Compute(law.coefficient, law.exponent, law.scatter if np.isfinite(law.scatter) else 0.0)
