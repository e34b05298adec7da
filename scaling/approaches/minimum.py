"""The size of lowest loss among runs of one compute budget: by a parabola, and by a spline.

A parabola of log loss in log N holds only near its minimum, so runs count less the further their loss lies above the
budget's best. A spline assumes no shape and follows the noise instead; where the two agree, the shape did not matter.
"""

from dataclasses import dataclass

import numpy as np
import scipy.interpolate
from jaxtyping import Float

_FAR = 0.05  # a run 5 % above the budget's best loss counts half
_OUTLIER = 3.5  # standard deviations above the parabola at which a run is called under-tuned
_FINE = 400  # points at which a spline is searched for its minimum


@dataclass(frozen=True)
class Parabola:
    """Log loss = c0 + c1 x + c2 x^2 through the runs of one budget, with x = log(N) - centre.

    Attributes:
        centre: mean log N.
        coefficients: c0, c1, c2; nan with fewer than three sizes.
        smoother: log losses -> coefficients.
        design: powers of x, a row a run.
        weights: of the runs.
        left: log loss minus the parabola.
        limits: between which a minimum is believed, in x.
        refused: why there is no usable minimum; empty when there is one.
        sides: number of sizes below and above the minimum.
    """

    centre: float
    coefficients: Float[np.ndarray, " 3"]
    smoother: Float[np.ndarray, "3 runs"]
    design: Float[np.ndarray, "runs 3"]
    weights: Float[np.ndarray, " runs"]
    left: Float[np.ndarray, " runs"]
    limits: tuple[float, float]
    refused: str
    sides: tuple[int, int]

    def minimum(self, coefficients: Float[np.ndarray, "*draws 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Log N and log loss at the minimum; nan where the parabola opens downward."""
        c0, c1, c2 = np.moveaxis(np.asarray(coefficients), -1, 0)
        bend = np.where(c2 > 0, c2, np.nan)
        x = np.clip(-c1 / (2 * bend), *self.limits)
        return x + self.centre, c0 + c1 * x + c2 * x * x

    def doubts(self, noise: float) -> tuple[str, ...]:
        """What weakens the minimum, in clauses; `noise` is that of a run, from all budgets together."""
        found = []
        for count, side in zip(self.sides, ("below", "above"), strict=True):
            if count < 2:
                found.append(f"only one size lies {side} the minimum, which that run alone decides")
        if np.isfinite(noise) and noise > 0 and len(self.left) > 4:
            leverage = np.clip(np.sum(self.design * self.smoother.T, axis=1), 0.0, 0.95)
            height = self.left / (noise * np.sqrt(1 - leverage)) * np.sqrt(self.weights)
            for run in np.flatnonzero(height > _OUTLIER):
                size = np.exp(self.design[run, 1] + self.centre)
                found.append(
                    f"the run of {size:.3g} parameters lies {np.expm1(self.left[run]):.1%} above its parabola, "
                    f"{height[run]:.1f} standard deviations: under-tuned?"
                )
        return tuple(found)


def parabola(log_n: Float[np.ndarray, " runs"], log_loss: Float[np.ndarray, " runs"]) -> Parabola:
    """The parabola through the runs of one budget, and whether its minimum can be used."""
    sizes = np.unique(np.round(log_n, 6))
    centre = float(log_n.mean())
    x = log_n - centre
    weights = np.ones_like(x)
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients, smoother = np.full(3, np.nan), np.zeros((3, len(x)))
    for again in range(2 if len(sizes) >= 3 else 0):
        if again:  # the excess is measured from the first parabola's lowest point, not from the luckiest run
            fitted = design @ coefficients
            weights = 1 / (1 + ((fitted - fitted.min()) / _FAR) ** 2)
        root = np.sqrt(weights)
        smoother = np.linalg.pinv(design * root[:, None]) * root
        coefficients = smoother @ log_loss
    left = log_loss - design @ coefficients if len(sizes) >= 3 else np.zeros_like(x)
    # A draw may move the minimum past the smallest or largest run, but not by more than half the range.
    reach = np.ptp(x) / 2
    limits = (x.min() - reach, x.max() + reach)
    lowest, where = x[np.argmin(log_loss)], -coefficients[1] / (2 * coefficients[2])
    refused = ""
    if len(sizes) < 3:
        refused = f"a parabola needs three sizes and it has {len(sizes)}"
    elif coefficients[2] <= 0:
        refused = "the parabola opens downward, so it has no minimum"
    elif not x.min() < where < x.max():
        refused = "the minimum of the parabola lies outside the sizes trained"
    elif lowest in (x.min(), x.max()):
        end = "smallest" if lowest == x.min() else "largest"
        refused = f"the lowest loss is at the {end} size, so the minimum is not bracketed"
    sides = (int(np.sum(sizes < where + centre)), int(np.sum(sizes > where + centre)))
    return Parabola(centre, coefficients, smoother, design, weights, left, limits, refused, sides)


def pooled_noise(parts: list[Parabola]) -> float:
    """Standard deviation of a run about the usable parabolas; nan when they pass exactly through their runs."""
    usable = [part for part in parts if not part.refused]
    freedom = sum(len(part.left) - 3 for part in usable)
    return (
        float(np.sqrt(sum(part.weights @ part.left**2 for part in usable) / freedom)) if freedom > 0 else float("nan")
    )


def akima(log_n: Float[np.ndarray, " runs"], log_loss: Float[np.ndarray, "draws runs"]) -> Float[np.ndarray, " draws"]:
    """Log N at the minimum of an Akima spline (Akima 1970, as in Porian et al. 2024, arXiv:2406.19146) through runs.

    Args:
        log_n: of the runs; those of one size are averaged.
        log_loss: one row a draw.

    Returns:
        One minimum a draw, never beyond the sizes trained; nan with fewer than four sizes.
    """
    sizes, which = np.unique(np.round(log_n, 6), return_inverse=True)
    if len(sizes) < 4:
        return np.full(len(log_loss), np.nan)
    means = np.stack([log_loss[:, which == i].mean(axis=1) for i in range(len(sizes))])
    spline = scipy.interpolate.Akima1DInterpolator(sizes, means, axis=0)
    fine = np.linspace(sizes[0], sizes[-1], _FINE)
    return fine[np.argmin(spline(fine), axis=0)]
