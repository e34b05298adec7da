"""Runs that were predicted and not fitted: the prediction beside the measurement."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from scaling import runs
from scaling.approaches.study import Study
from scaling.estimate import Estimate


@dataclass(frozen=True)
class HeldOut:
    """One run the study did not see.

    Attributes:
        params: N, under the study's convention.
        tokens: D.
        flops: C, under the study's convention.
        predicted: loss predicted before it was measured, with the interval for one new run.
        loss: measured loss, nats per token; None before the run has ended.
        loss_se: standard error of the measurement, where known.
        run: its identity.
    """

    params: float
    tokens: float
    flops: float
    predicted: Estimate
    loss: float | None = None
    loss_se: float | None = None
    run: str = ""

    @property
    def error(self) -> float | None:
        """Measured over predicted, minus 1."""
        return None if self.loss is None else self.loss / self.predicted.value - 1

    @property
    def inside(self) -> bool | None:
        """Whether the measurement lies in the interval."""
        return None if self.loss is None else self.loss in self.predicted

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        named = {name: getattr(self, name) for name in ("run", "params", "tokens", "flops", "loss", "loss_se")}
        return named | {"predicted": self.predicted.to_dict(), "error": self.error, "inside": self.inside}


def predict_held_out(study: Study, table: pd.DataFrame) -> tuple[HeldOut, ...]:
    """Predict every row of a table whose role is 'held-out'.

    Args:
        study: made from the other rows.
        table: as `runs.read` returns it; without a column `role` nothing is held out.
    """
    held = runs.split(table)[1]
    if held.empty:
        return ()
    checked = runs.check(held, convention=study.convention, minimum=0).frame
    frame = study.convention.view(checked)
    return tuple(
        HeldOut(
            params=float(row["params"]),
            tokens=float(row["tokens"]),
            flops=float(row["flops"]),
            predicted=study.predict(float(row["params"]), float(row["tokens"])),
            loss=float(row["loss"]),
            loss_se=float(row["loss_se"]) if "loss_se" in frame else None,
            run=str(row.get("run", "")),
        )
        for _, row in frame.iterrows()
    )


def as_held_out(given: HeldOut | Mapping | Iterable | None) -> tuple[HeldOut, ...]:
    """One, several or no held-out runs, as objects or mappings, as a tuple of `HeldOut`."""
    if given is None:
        return ()
    if isinstance(given, HeldOut):
        return (given,)
    if isinstance(given, Mapping):
        return (HeldOut(**given),)
    return tuple(each for part in given for each in as_held_out(part))
