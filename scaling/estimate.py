"""A value and the interval it lies in."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
"""Probability that the intervals of this package claim, unless said otherwise."""


@dataclass(frozen=True)
class Estimate:
    """A value and the interval it lies in.

    Attributes:
        value: the point estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __contains__(self, other: float) -> bool:
        return bool(self.low <= other <= self.high)

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def percentile(samples: Float[np.ndarray, "resamples *rest"], value, *, spread: float = 1.0, level: float = LEVEL):
    """Percentile interval of bootstrap samples, its distance from the median stretched by `spread`."""
    tail = (1 - level) / 2
    low, middle, high = np.nanquantile(samples, [tail, 0.5, 1 - tail], axis=0)
    low, high = middle - spread * (middle - low), middle + spread * (high - middle)
    return np.minimum(low, value), np.maximum(high, value)
