"""Published laws beside one's own: which can be drawn, at which optimum, in which dashes."""

from collections.abc import Iterable, Sequence

import numpy as np

from scaling import published
from scaling.figures.theme import Theme
from scaling.fitting.quantities import optimum
from scaling.published import SIX_ND, PublishedLaw
from scaling.runs import nearest

_STYLES = ((0, (1, 1.2)), (0, (3, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (2, 2)))
MOST = len(_STYLES)
"""Laws that can be told apart by their dashes."""


def with_optimum() -> tuple[PublishedLaw, ...]:
    """The published laws of N and D alone, so with an optimum at every budget."""
    laws = (each for each in published.LAWS if set(each.law.columns) == {"params", "tokens"})
    return tuple(each for each in laws if each.law.target == "loss")


def named(names: Iterable[str]) -> tuple[PublishedLaw, ...]:
    """Published laws by name.

    Raises:
        ValueError: no such law of N and D, or more than can be told apart.
    """
    known, names = {each.name: each for each in with_optimum()}, tuple(names)
    for name in names:
        if name not in known:
            raise ValueError(f"no published law {name!r} of N and D to draw" + nearest(name, known))
    if len(names) > MOST:
        raise ValueError(f"{len(names)} published laws to draw; at most {MOST} can be told apart")
    return tuple(known[name] for name in names)


def at(law: PublishedLaw, flops: float) -> tuple[float, float, float]:
    """N, D and loss of a published law at a budget, its compute being 6ND."""
    return tuple(float(value) for value in optimum(law.law, law.parameters, SIX_ND, flops))


def draw(axes, laws: Sequence[PublishedLaw], flops: Sequence[float], which: int, theme: Theme) -> list[float]:
    """One dashed line a law, soft in colour; returns the values at both ends.

    Args:
        axes: drawn on.
        laws: at most `MOST`.
        flops: budgets, ascending.
        which: 0 for N, 1 for D, 2 for loss.
        theme: colours.
    """
    ends = []
    for law, style in zip(laws, _STYLES, strict=False):
        value = np.array([at(law, each)[which] for each in flops])
        axes.plot(flops, value, color=theme.soft, linestyle=style, linewidth=1.7, zorder=4, label=law.name)
        ends += [value[0], value[-1]]
    return ends
