"""Loss curves under a learning-rate schedule: Tissue et al. 2024 (arXiv:2408.11029), Multi-Power Law (Luo et al. 2025).

Rows are points of training curves. What the laws read of the schedule are sums over its past, which `sums` makes from
the curves' `step` and `lr`:

    table = curves.assign(**sums(curves, warmup=2160))
    fit(table, "annealing")
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from scaling.laws.law import Law, coefficient, exponent, namespace, offset, positive

ANNEALING = Law(
    name="annealing",
    formula=lambda lr_sum, lr_annealing, L_0, A, C, alpha: L_0 + A * lr_sum**-alpha - C * lr_annealing,
    columns=("lr_sum", "lr_annealing"),
    parameters=(
        offset("L_0", meaning="loss that no length of training at constant rate removes"),
        coefficient("A", meaning="weight of the area under the schedule"),
        coefficient("C", meaning="loss removed by a unit of annealing area"),
        exponent("alpha", meaning="exponent of the area under the schedule"),
    ),
    source="Tissue et al. 2024, arXiv:2408.11029, eq. 1",
    text="L = L_0 + A S_1^-α - C S_2",
    unchecked=("lr_annealing",),
)


def _multi_power(lr_sum, lr_drop, lr_after, lr_since, L_0, A, B, C, alpha, beta, gamma):
    xp = namespace(lr_sum, lr_drop, L_0, alpha)
    recovered = 1 - (1 + C * lr_since * lr_after**-gamma) ** -beta
    return L_0 + A * lr_sum**-alpha - B * xp.sum(lr_drop * recovered, axis=-1)


MULTI_POWER = Law(
    name="multi-power",
    formula=_multi_power,
    columns=("lr_sum", "lr_drop", "lr_after", "lr_since"),
    parameters=(
        offset("L_0", meaning="loss that no length of training at constant rate removes"),
        coefficient("A", meaning="weight of the area under the schedule"),
        coefficient("B", meaning="loss that a drop of the rate by one removes in the end"),
        positive("C", starts=(1.0, 10.0), meaning="how soon it is removed"),
        exponent("alpha", starts=(0.3, 0.6), meaning="exponent of the area under the schedule"),
        exponent("beta", starts=(0.3, 0.8), meaning="exponent with which a drop's effect is completed"),
        exponent("gamma", starts=(0.4, 0.8), meaning="how much sooner at a lower rate"),
    ),
    source="Luo et al. 2025, arXiv:2503.12811, as its repository states the law",
    text="L = L_0 + A S_1^-α - B Σ_k (η_(k-1) - η_k) G(η_k^-γ S_k),  G(x) = 1 - (1 + C x)^-β",
    unchecked=("lr_drop", "lr_after", "lr_since"),
)

LAWS = (ANNEALING, MULTI_POWER)


def sums(
    curves: pd.DataFrame,
    *,
    warmup: int,
    by: Sequence[str] = ("run",),
    decay: float = 0.999,
    pieces: int = 16,
) -> Mapping[str, Float[np.ndarray, " rows"] | list[Float[np.ndarray, " pieces"]]]:
    """The columns of the laws of this file, for every point of every curve.

    Between recorded steps the rate is taken to change linearly, before the first to have risen linearly from zero
    over `warmup` steps and then to have stayed. Annealing counts from the end of the warm-up.

    * `lr_sum`: S_1, the sum of the rate over all steps so far.
    * `lr_annealing`: S_2, the sum over steps i so far of sum_(k <= i) (η_(k-1) - η_k) decay^(i-k).
    * `lr_drop`, `lr_after`, `lr_since`: rows of `pieces` numbers. The decay of a run is cut into pieces in which the
      rate changes by equal amounts; of each, the change so far, the rate after it, and S_k, the sum since.

    Args:
        curves: columns `step` and `lr`, and those of `by`.
        warmup: steps of linear warm-up.
        by: the columns that tell runs apart.
        decay: lambda of Tissue et al., who use 0.99 to 0.999.
        pieces: in how many parts the Multi-Power law's sum over steps is taken; one a step is exact.

    Returns:
        Columns by name, in the order of the rows, to be assigned to the table.

    Raises:
        ValueError: a column is missing, or a run has a step twice or none above zero.
    """
    for name in ("step", "lr", *by):
        if name not in curves:
            raise ValueError(f"training curves need a column {name!r} to sum the learning rate over; there is none")
    flat = np.full((2, len(curves)), np.nan)
    wide = np.full((3, len(curves), pieces), np.nan)
    for run, rows in curves.reset_index(drop=True).groupby(list(by), sort=False).indices.items():
        rows = rows[np.argsort(curves["step"].to_numpy()[rows], kind="stable")]
        step, rate = (curves[name].to_numpy()[rows] for name in ("step", "lr"))
        if step[0] < 1 or np.any(np.diff(step) <= 0):
            raise ValueError(f"run {run!r}: steps must be above zero and each occur once")
        flat[:, rows], wide[:, rows] = _sums_of_run(step.astype(int), rate.astype(np.float64), warmup, decay, pieces)
    named = dict(zip(("lr_sum", "lr_annealing"), flat, strict=True))
    return named | dict(zip(("lr_drop", "lr_after", "lr_since"), map(list, wide), strict=True))


def _sums_of_run(step: np.ndarray, rate: np.ndarray, warmup: int, decay: float, pieces: int):
    import scipy.signal  # slow to import, and only curves need it

    every = np.arange(1, step[-1] + 1)
    eta = np.interp(every, step, rate) * np.minimum(every / max(warmup, 1), 1.0)
    total = np.cumsum(eta)
    drop = -np.diff(eta, prepend=eta[0])
    drop[: warmup + 1] = 0.0
    annealing = np.cumsum(scipy.signal.lfilter([1.0], [1.0, -decay], drop))
    moved = np.cumsum(np.abs(drop))
    share = moved / moved[-1] if moved[-1] > 0 else np.zeros_like(moved)
    piece = np.minimum((share * pieces).astype(int), pieces - 1)
    weight = np.abs(drop) + 1e-12 * rate[0]  # so that a piece in which nothing moves has a middle too
    size = np.bincount(piece, weight, pieces)
    mean = np.where(size > 0, size, 1.0)
    after = np.where(size > 0, np.bincount(piece, weight * eta, pieces) / mean, eta[-1])
    start = np.where(size > 0, np.bincount(piece, weight * (total - eta), pieces) / mean, total[-1])
    at = step - 1
    fallen = np.stack([np.cumsum(np.where(piece == k, drop, 0.0))[at] for k in range(pieces)], axis=1)
    since = np.maximum(total[at, None] - start, 0.0)
    return (total[at], annealing[at]), (fallen, np.broadcast_to(after, since.shape), since)
