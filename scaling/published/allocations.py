"""Published compute-optimal exponents: N_opt ~ C^a."""

from dataclasses import dataclass

from scaling.published.constants import PETAFLOP_DAY


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


_HOFFMANN = "Hoffmann et al. 2022, arXiv:2203.15556, table 2"
_KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361, section 6.1"
_PORIAN = "Porian et al. 2024, arXiv:2406.19146, the fits its repository draws figure 1 from (RefinedWeb)"
_DEEPSEEK = "DeepSeek LLM 2024, arXiv:2401.02954, section 3.2"
_TOTAL = "N all parameters, C = 6ND"
_NONEMBEDDING = "N without embeddings, C = 6ND"


def _porian(step: int, what: str, a: float, low: float, high: float, coefficient: float) -> PublishedAllocation:
    convention = "N without embeddings and head, C = 6ND" if step == 1 else "N with the head, C = 6ND"
    return PublishedAllocation(f"Porian {step}, {what}", a, low, high, coefficient, 1.0, convention, _PORIAN)


ALLOCATIONS: tuple[PublishedAllocation, ...] = (
    PublishedAllocation("Hoffmann, approach 1", 0.50, 0.488, 0.502, None, 1.0, _TOTAL, _HOFFMANN),
    PublishedAllocation("Hoffmann, approach 2", 0.49, 0.462, 0.534, None, 1.0, _TOTAL, _HOFFMANN),
    PublishedAllocation("Hoffmann, approach 3", 0.46, 0.454, 0.455, None, 1.0, _TOTAL, _HOFFMANN),
    PublishedAllocation("Kaplan", 0.73, None, None, 1.3e9, PETAFLOP_DAY, _NONEMBEDDING, _KAPLAN),
    PublishedAllocation(
        "DeepSeek", 0.5243, None, None, 0.1715, 1.0, "M FLOPs per token without embeddings, C = MD", _DEEPSEEK
    ),
    _porian(1, "as Kaplan", 0.83530, 0.82352, 0.84596, 4.2320e-8),
    _porian(2, "head counted", 0.70647, 0.69149, 0.71693, 1.2702e-5),
    _porian(3, "warm-up by size", 0.60204, 0.59143, 0.61728, 1.43092e-3),
    _porian(4, "decay by tokens", 0.57149, 0.55980, 0.58852, 4.76929e-3),
    _porian(5, "optimizer tuned", 0.49690, 0.49068, 0.50452, 0.118926),
)
