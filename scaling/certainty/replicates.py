"""What training noise alone does to the loss, from runs that differ in nothing but their seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.special

from scaling.estimate import LEVEL, Estimate
from scaling.fitting.fit import Fit
from scaling.runs import nearest

SEEDS = ("seed", "rerun")
"""Columns that tell replicates of one run apart."""

_SETTINGS = (
    "architecture", "params", "params_nonembedding", "params_active", "tokens", "unique_tokens", "flops",
    "batch_tokens", "learning_rate", "steps", "width", "layers", "length", "vocab",
)  # fmt: skip


@dataclass(frozen=True)
class Replicates:
    """Pooled variance of the log loss between replicates.

    Attributes:
        sigma: standard deviation of the log loss of one run, relative: 0.01 is 1 % of the loss.
        freedom: degrees of freedom, replicates beyond the first of each group.
        groups: settings that were run more than once.
        rows: runs in them.
    """

    sigma: float
    freedom: int
    groups: int
    rows: int

    def interval(self, level: float = LEVEL) -> Estimate:
        """Of sigma, by chi-square: few replicates leave it wide."""
        tails = (1 + level) / 2, (1 - level) / 2
        low, high = (
            self.sigma * np.sqrt(self.freedom / (2 * scipy.special.gammaincinv(self.freedom / 2, tail)))
            for tail in tails
        )
        return Estimate(self.sigma, float(low), float(high))

    def lack_of_fit(self, fit: Fit) -> "LackOfFit":
        """How much of a fit's residuals is not noise: the law's own misses.

        Args:
            fit: to a table that holds these replicates.

        Returns:
            The part beyond noise and the probability of seeing as much from noise alone, by the F test of lack of fit
            against pure error (Draper and Smith 1998, Applied Regression Analysis, section 2.1).
        """
        pure = self.sigma**2 * self.freedom
        rows = len(fit.residuals)
        left = rows - len(fit.parameters) - self.freedom
        excess = max(float(np.sum(fit.residuals**2)) - pure, 0.0)
        if left < 1:
            return LackOfFit(fit.sigma, self.sigma, float("nan"), float("nan"))
        ratio = (excess / left) / max(self.sigma**2, 1e-300)
        again = rows / (rows - self.freedom)  # runs a setting: each repeats the setting's miss
        beyond = float(np.sqrt(max(excess / left - self.sigma**2, 0.0) / again))
        return LackOfFit(fit.sigma, self.sigma, beyond, float(scipy.special.fdtrc(left, self.freedom, ratio)))

    def new_run(self, fit: Fit) -> float:
        """Standard deviation of a new run's log residual: its noise, and what the law misses at a new setting."""
        beyond = self.lack_of_fit(fit).beyond
        return max(fit.sigma, float(np.hypot(self.sigma, beyond if np.isfinite(beyond) else 0.0)))

    def __str__(self) -> str:
        interval = self.interval()
        return (
            f"{self.rows} runs of {self.groups} settings differ in their seed alone: noise {self.sigma:.2%} of the "
            f"loss ({interval.low:.2%} to {interval.high:.2%}, {self.freedom} degrees of freedom)"
        )

    def to_dict(self) -> dict:
        """Plain numbers, for JSON."""
        noise = self.interval().to_dict()
        return {"sigma": noise, "freedom": self.freedom, "groups": self.groups, "rows": self.rows}


@dataclass(frozen=True)
class LackOfFit:
    """Residuals against the noise of replicates.

    Attributes:
        residual: standard deviation of the fit's log residuals.
        noise: of replicates.
        beyond: standard deviation of what noise does not explain; nan where every degree of freedom is a replicate's.
        probability: of so large a residual if the law had no lack of fit.
    """

    residual: float
    noise: float
    beyond: float
    probability: float

    def __str__(self) -> str:
        start = f"residuals {self.residual:.2%} of the loss, noise of replicates {self.noise:.2%}: "
        if not np.isfinite(self.probability):
            return start + "too few settings to tell lack of fit"
        if self.probability < 0.01:
            return start + f"the law misses {self.beyond:.2%} beyond noise (F test, p = {self.probability:.1e})"
        return start + f"no lack of fit beyond noise (F test, p = {self.probability:.2f})"


def replicates(frame: pd.DataFrame, *, target: str = "loss", settings: Sequence[str] = ()) -> Replicates | None:
    """Noise of training, from rows that are equal in everything but their seed.

    Two rows are replicates when they have another `seed` or `rerun` and the same settings: all of the schema's that
    the table has (sizes, tokens, FLOPs, batch, learning rate, ...), every column of text or of truth values but `run`,
    and those named here. Numbers in columns the schema does not know may be measurements, so name those that are
    settings.

    Args:
        frame: the rows of a table, `runs.load(...).frame`.
        target: what was measured, positive.
        settings: further columns that must agree.

    Returns:
        The pooled variance; None where no setting was run twice.

    Raises:
        ValueError: no column that tells replicates apart, or a column that is not there.
    """
    seeds = [name for name in SEEDS if name in frame]
    if not seeds:
        raise ValueError(f"no replicates without a column {' or '.join(map(repr, SEEDS))}")
    for name in (target, *settings):
        if name not in frame:
            raise ValueError(f"the table has no column {name!r}" + nearest(name, map(str, frame.columns)))
    ignored = {"run", "sweep", "status", "reason", "role", target, *seeds}
    measured = {name for name in frame if pd.api.types.is_numeric_dtype(frame[name])}
    measured -= {name for name in frame if pd.api.types.is_bool_dtype(frame[name])}
    text = [name for name in frame if name not in ignored | measured]
    known = [name for name in _SETTINGS if name in frame]
    distinct = frame.drop_duplicates(subset=[name for name in dict.fromkeys((*known, *text, *settings, *seeds))])
    log = np.log(distinct[target])
    groups = log.groupby([distinct[name] for name in dict.fromkeys((*known, *text, *settings))], dropna=False)
    count = groups.transform("size")
    again = count > 1
    if not again.any():
        return None
    number = int((1 / count[again]).sum().round())
    freedom = int(again.sum()) - number
    squares = float(((log - groups.transform("mean"))[again] ** 2).sum())
    return Replicates(float(np.sqrt(squares / freedom)), freedom, number, int(again.sum()))
