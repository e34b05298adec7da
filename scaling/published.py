"""Published laws as data, each with its source, to draw beside one's own and to test against."""

from dataclasses import dataclass, field

from scaling import laws
from scaling.laws import Law
from scaling.powerlaw import Compute
from scaling.runs import nearest

PETAFLOP_DAY = 1e15 * 86400
"""FLOPs in Kaplan's unit of compute."""


@dataclass(frozen=True)
class PublishedLaw:
    """A law of the loss with the constants of a paper.

    Attributes:
        name: short name for a legend.
        law: the form.
        parameters: the constants.
        convention: what N and C count in that paper.
        source: paper and equation or table.
    """

    name: str
    law: Law
    parameters: dict[str, float] = field(hash=False)
    convention: str
    source: str

    def __call__(self, **columns):
        """Loss, nats per token."""
        return self.law(columns, self.parameters)


@dataclass(frozen=True)
class PublishedAllocation:
    """A compute-optimal exponent: N_opt ~ C^a.

    Attributes:
        name: short name for a legend.
        a: the exponent.
        low: lower end of its interval, where one was given.
        high: upper end.
        coefficient: N_opt at C = 1 in `unit`, where one was given.
        unit: FLOPs of one unit of compute.
        convention: what N and C count in that paper.
        source: paper and equation or table.
    """

    name: str
    a: float
    low: float | None
    high: float | None
    coefficient: float | None
    unit: float
    convention: str
    source: str


SIX_ND = Compute(6.0, 1.0, 0.0)
"""The compute of large models, as published laws count it."""

_HOFFMANN = "Hoffmann et al. 2022, arXiv:2203.15556"
_KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361"
_TOTAL = "N all parameters, C = 6ND"
_NONEMBEDDING = "N without embeddings, C = 6ND"

LAWS: tuple[PublishedLaw, ...] = (
    PublishedLaw(
        "Hoffmann",
        laws.CHINCHILLA,
        {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        _TOTAL,
        f"{_HOFFMANN}, eq. 10",
    ),
    PublishedLaw(
        "Besiroglu",
        laws.CHINCHILLA,
        {"E": 1.8169, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        _TOTAL,
        "Besiroglu et al. 2024, arXiv:2404.10102, table 1",
    ),
    PublishedLaw("Kaplan L(N)", laws.KAPLAN_N, {"N_c": 8.8e13, "alpha_N": 0.076}, _NONEMBEDDING, f"{_KAPLAN}, eq. 1.1"),
    PublishedLaw("Kaplan L(D)", laws.KAPLAN_D, {"D_c": 5.4e13, "alpha_D": 0.095}, _NONEMBEDDING, f"{_KAPLAN}, eq. 1.2"),
    PublishedLaw(
        "Kaplan L(C)",
        laws.KAPLAN_C,
        {"C_c": 1.6e7 * PETAFLOP_DAY, "alpha_C": 0.057},
        _NONEMBEDDING,
        f"{_KAPLAN}, section 3.3; C_c = 1.6e7 PF-days",
    ),
    PublishedLaw(
        "Kaplan L(C_min)",
        laws.KAPLAN_C,
        {"C_c": 3.1e8 * PETAFLOP_DAY, "alpha_C": 0.050},
        _NONEMBEDDING,
        f"{_KAPLAN}, eq. 1.3; C_c = 3.1e8 PF-days",
    ),
    PublishedLaw(
        "Kaplan L(N, D)",
        laws.KAPLAN_ND,
        {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
        _NONEMBEDDING,
        f"{_KAPLAN}, eq. 1.5 and table 2",
    ),
)

ALLOCATIONS: tuple[PublishedAllocation, ...] = (
    PublishedAllocation("Hoffmann, approach 1", 0.50, 0.488, 0.502, None, 1.0, _TOTAL, f"{_HOFFMANN}, table 2"),
    PublishedAllocation("Hoffmann, approach 2", 0.49, 0.462, 0.534, None, 1.0, _TOTAL, f"{_HOFFMANN}, table 2"),
    PublishedAllocation("Hoffmann, approach 3", 0.46, 0.454, 0.455, None, 1.0, _TOTAL, f"{_HOFFMANN}, table 2"),
    PublishedAllocation("Kaplan", 0.73, None, None, 1.3e9, PETAFLOP_DAY, _NONEMBEDDING, f"{_KAPLAN}, section 6.1"),
)


def law(name: str) -> PublishedLaw:
    """A published law by name.

    Raises:
        ValueError: no such law; the message offers the nearest.
    """
    known = {each.name: each for each in LAWS}
    if name not in known:
        raise ValueError(f"no published law {name!r}" + nearest(name, known))
    return known[name]
