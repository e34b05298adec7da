"""What it costs to deviate from the optimum: other sizes at the same budget, and at the same loss."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scaling.certainty.bootstrap import Bootstrap
from scaling.decisions.constraints import Setting
from scaling.estimate import Estimate

_FACTORS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
_FINE = np.geomspace(1 / 64, 64, 513)


@dataclass(frozen=True)
class Deviation:
    """Another size than the planned one, at the same budget and at the same loss.

    Attributes:
        factor: its N over the planned one.
        params: N.
        tokens: D that the budget buys at this size.
        penalty: loss there above the lowest, nats; its interval compares with each draw's own optimum.
        tokens_needed: D that reaches the planned loss at this size: a point of the iso-loss curve; infinite where this
            size cannot reach it.
        extra: compute that reaching it takes over the budget, minus 1.
    """

    factor: float
    params: float
    tokens: float
    penalty: Estimate
    tokens_needed: float
    extra: Estimate


def deviations(
    boot: Bootstrap, setting: Setting, flops: float, *, params: float, loss: float, lowest: Float[np.ndarray, " draws"]
) -> tuple[Deviation, ...]:
    """What an eighth to eight times the optimal size costs, as far as constraints and budget allow it.

    Args:
        boot: the fit and its resamples.
        setting: what is planned with it.
        flops: the budget.
        params: the optimal size.
        loss: the lowest loss.
        lowest: the lowest loss of every resample.
    """
    law, constraints, cost = setting.law, setting.constraints, setting.cost
    draws, found = boot.by_name, []
    for factor in _FACTORS:
        size = factor * params
        tokens = float(constraints.tokens_for(cost, flops, size))
        if size > constraints.most_params * (1 + 1e-9) or tokens <= 0:
            continue
        read = setting.read(size, tokens)
        apart = np.maximum(law(read, draws) - lowest, 0.0)
        needed = setting.tokens_needed(boot.fit.parameters, np.asarray(loss), np.asarray(size))
        needed_draws = setting.tokens_needed(draws, lowest, np.full(lowest.shape, size))
        extra = [constraints.flops_for(cost, size, each) / flops - 1 for each in (needed_draws, needed)]
        found.append(
            Deviation(
                factor=factor,
                params=size,
                tokens=tokens,
                penalty=_above_zero(boot, apart, max(float(boot.fit.predict(read)) - loss, 0.0)),
                tokens_needed=float(needed),
                extra=_above_zero(boot, extra[0], max(float(extra[1]), 0.0)),
            )
        )
    return tuple(found)


def _above_zero(boot: Bootstrap, draws: np.ndarray, value: float) -> Estimate:
    """An interval of what is never negative; where draws are out of reach its end is infinite."""
    tail = (1 - boot.level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], method="closest_observation")
    return Estimate(value, min(max(float(low), 0.0), value), max(float(high), value))


def near(
    boot: Bootstrap, setting: Setting, flops: float, *, params: float, loss: float, tolerance: float
) -> tuple[float, float]:
    """The sizes about the optimal one that reach its loss with at most `tolerance` more compute."""
    size = params * _FINE
    needed = setting.tokens_needed(boot.fit.parameters, np.full(size.shape, loss), size)
    fine = setting.constraints.flops_for(setting.cost, size, needed) <= flops * (1 + tolerance)
    fine &= size <= setting.constraints.most_params * (1 + 1e-9)
    middle = len(size) // 2
    off = np.flatnonzero(~fine)
    left = off[off < middle].max(initial=-1) + 1
    right = off[off > middle].min(initial=len(size)) - 1
    return float(size[left]), float(size[right])
