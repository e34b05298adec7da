"""Laws: functional forms of loss against parameters, data and compute, each a small value, found by name.

One file a family; its laws are its `LAWS`. A law of your own needs no entry here: every function of this package that
takes a name takes a `Law`.
"""

from scaling.laws import (
    broken,
    chinchilla,
    downstream,
    experts,
    hyperparameters,
    kaplan,
    overtraining,
    power,
    precision,
    repetition,
    schedule,
    shape,
    vocabulary,
)  # fmt: skip
from scaling.laws.chinchilla import CHINCHILLA
from scaling.laws.kaplan import KAPLAN_C, KAPLAN_D, KAPLAN_N, KAPLAN_ND
from scaling.laws.law import (
    Law,
    Parameter,
    Scale,
    array,
    characteristic,
    coefficient,
    exponent,
    namespace,
    offset,
    positive,
)  # fmt: skip
from scaling.runs import nearest

_FAMILIES = (
    chinchilla, kaplan, power, repetition, overtraining, downstream, shape, experts, precision, vocabulary,
    hyperparameters, schedule, broken,
)  # fmt: skip

LAWS: dict[str, Law] = {law.name: law for family in _FAMILIES for law in family.LAWS}
"""Every law by name."""

__all__ = [
    "CHINCHILLA", "KAPLAN_C", "KAPLAN_D", "KAPLAN_N", "KAPLAN_ND", "LAWS", "Law", "Parameter", "Scale", "array",
    "broken", "characteristic", "chinchilla", "coefficient", "downstream", "experts", "exponent", "get",
    "hyperparameters", "kaplan", "namespace", "offset", "overtraining", "positive", "power", "precision", "repetition",
    "schedule", "shape", "vocabulary",
]  # fmt: skip


def get(name: str) -> Law:
    """The law of that name.

    Raises:
        ValueError: no such law; the message offers the nearest.
    """
    if name not in LAWS:
        raise ValueError(f"no law {name!r}" + nearest(name, LAWS))
    return LAWS[name]
