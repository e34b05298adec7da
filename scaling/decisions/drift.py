"""Drift: whether a law's exponents stay where they are when the table grows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.special

from scaling.certainty.bootstrap import Draws
from scaling.display import interval, number
from scaling.estimate import Estimate
from scaling.fitting import quantities
from scaling.fitting.powerlaw import compute
from scaling.fitting.quantities import Quantity
from scaling.laws import Law, Scale

_CHANCE = 0.05
_LEAST = 0.3  # of a standard error: what differences of two nearly equal fits are divided by at least


@dataclass(frozen=True)
class Drift:
    """A quantity fitted below each cut-off and on the whole table.

    Attributes:
        quantity: its name.
        cutoffs: FLOPs; infinity for the whole table, last.
        estimates: one a cut-off.
        worst: index of the cut-off whose value is furthest from that of the whole table.
        z: that distance in standard errors of the difference. A fit to part of the runs and one to all differ with
            variance var(part) - var(all) if the law holds (Hausman 1978, doi:10.2307/1913827).
        chance: probability of so large a distance at any of the cut-offs if the law holds.
    """

    quantity: str
    cutoffs: tuple[float, ...]
    estimates: tuple[Estimate, ...]
    worst: int
    z: float
    chance: float

    @property
    def moves(self) -> bool:
        """More than chance explains."""
        return self.chance < _CHANCE

    @property
    def text(self) -> str:
        """In words."""
        part, whole = self.estimates[self.worst], self.estimates[-1]
        said = f"{interval(part, three)} below {self.cutoffs[self.worst]:.2g} FLOPs, "
        said += f"{interval(whole, three)} on all runs"
        if self.moves:
            way = "falls" if whole.value < part.value else "rises"
            return f"{self.quantity} {way} with scale: {said}; by chance with probability {chance(self.chance)}."
        return f"{self.quantity} holds within its intervals: {said}."


def three(value: float) -> str:
    """An exponent as it is shown."""
    return f"{value:.3f}" if abs(value) < 100 else number(value)


def chance(probability: float) -> str:
    """A probability as it is shown."""
    return f"{probability:.2f}" if probability >= 0.01 else "< 0.01"


def drifts(law: Law, frame: pd.DataFrame, cutoffs: Sequence[float], fitted: Sequence[Draws]) -> tuple[Drift, ...]:
    """How the exponents of a law, and that of its optimal size, move with the cut-off.

    Args:
        law: the law.
        frame: the whole table, with `params`, `tokens` and `flops`.
        cutoffs: FLOPs; infinity last.
        fitted: draws of the law fitted below each.
    """
    asked = [quantities.parameter(law, p.name) for p in law.parameters if p.scale is Scale.LINEAR and not p.linear]
    if {"params", "tokens"} == set(law.columns):
        cost = compute(*(frame[name].to_numpy(np.float64) for name in ("params", "tokens", "flops")))
        middle = float(np.exp(np.log(frame["flops"]).mean()))
        asked.insert(0, quantities.params_exponent(law, cost, middle))
    return tuple(_drift(quantity, tuple(cutoffs), fitted) for quantity in asked)


def _drift(quantity: Quantity, cutoffs: tuple[float, ...], fitted: Sequence[Draws]) -> Drift:
    drawn = [quantity(each.by_name) for each in fitted]
    estimates = tuple(each.quantity(quantity) for each in fitted)
    # Half the middle 68 %: a standard error that draws far out in a tail do not move.
    errors = [
        each.spread * float(np.diff(np.nanquantile(draws, [0.16, 0.84]))[0]) / 2
        for draws, each in zip(drawn, fitted, strict=True)
    ]
    apart = [
        (estimate.value - estimates[-1].value) / max(np.sqrt(max(error**2 - errors[-1] ** 2, 0.0)), _LEAST * error)
        for estimate, error in zip(estimates[:-1], errors[:-1], strict=True)
    ]
    worst = int(np.argmax(np.abs(apart)))
    chance = min(1.0, 2 * float(scipy.special.ndtr(-abs(apart[worst]))) * len(apart))  # at any of them: Bonferroni
    return Drift(quantity.name, cutoffs, estimates, worst, float(apart[worst]), chance)
