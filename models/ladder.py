"""Ladders: models of a family at any parameter counts, in shapes that a person would choose.

The loss depends on a Transformer's shape only weakly: within a few per cent over a fortyfold range of width / depth at
fixed parameters (Kaplan et al. 2020, section 3.1 and figure 5). So shapes here follow one curve,

    depth = (width / 8)^(5/9),

through 1 block at width 8, 12 at 768 (GPT-2), 22 at 2048 (TinyLlama), 32 at 4096 (Llama 7B) and 97 at 30,000, where
Levine et al. (2020, section 5) expect the best model of 10^12 parameters to have 95. Width / depth grows along it
from 8 through 64 to 128 and 310. A shape may leave the curve by a factor of `BAND` in depth to come closer to the size
asked for, but no further, so that a law fitted to a ladder is about size and not about shape.

Widths are multiples of the size of a head, which grows with them (8 to 128): every model has whole heads of a sane
size, at least two of them except at width 8.
"""

import functools
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from models import zoo
from models.config import Architecture
from models.cost import Cost

BAND = 1.5  # furthest that depth goes from the curve, either way
TOLERANCE = 0.02  # a size this far off costs as much as a depth at the edge of the band
WIDEST = 65_536
# From this width on, heads are of this size and widths a multiple of it.
HEAD_DIMS = ((8, 8), (64, 16), (128, 32), (256, 64), (1024, 128))
CHOSEN = ("width", "depth", "heads", "head_dim", "hidden")


class Convention(Enum):
    """Which parameters are counted; the values are the names of the counts in `models.cost.Cost`."""

    PARAMS = "params"
    NONEMBEDDING = "params_nonembedding"

    def count(self, cost: Cost) -> int:
        """Parameters by this convention."""
        return getattr(cost, self.value)


@dataclass(frozen=True)
class _Shapes:
    """All shapes of a family inside the band, from the smallest to the largest; no two of one size."""

    params: np.ndarray
    width: np.ndarray
    depth: np.ndarray
    strain: np.ndarray  # log of depth over the curve's, in units of the band: -1 to 1

    def badness(self, target: float) -> np.ndarray:
        return np.square(np.log(self.params / target) / math.log1p(TOLERANCE)) + np.square(self.strain)


def closest(
    family: str,
    params: float,
    *,
    vocab: int,
    length: int,
    convention: Convention = Convention.PARAMS,
    **settings: Any,
) -> Architecture:
    """The model of a family nearest to a number of parameters.

    Args:
        family: name of a family in `models.zoo.FAMILIES`.
        params: parameters wanted, by `convention`.
        vocab: vocabulary size.
        length: longest row in tokens.
        convention: which parameters are counted.
        **settings: other settings of the family, `models.zoo.SETTINGS`, without those of size.

    Raises:
        ValueError: if the smallest shape is larger than asked for, or the largest smaller; for an unknown family or
            setting.
    """
    return ladder(family, params, params, 1, vocab=vocab, length=length, convention=convention, **settings)[0]


def ladder(
    family: str,
    smallest: float,
    largest: float,
    count: int,
    *,
    vocab: int,
    length: int,
    convention: Convention = Convention.PARAMS,
    **settings: Any,
) -> tuple[Architecture, ...]:
    """Models of a family at `count` sizes in geometric progression, strictly increasing.

    Sizes are within 3 % of the progression from a hundred million parameters up, 7 % from a million, and below that as
    near as whole blocks and whole heads allow. The same arguments give the same models.

    Args:
        family: name of a family in `models.zoo.FAMILIES`.
        smallest: parameters of the first rung, by `convention`.
        largest: parameters of the last.
        count: number of rungs.
        vocab: vocabulary size.
        length: longest row in tokens.
        convention: which parameters are counted.
        **settings: other settings of the family, `models.zoo.SETTINGS`, without those of size.

    Raises:
        ValueError: if the smallest shape is larger than asked for, the largest smaller, or there are fewer shapes
            between the two than rungs; for an unknown family or setting.
    """
    if count < 1 or not 0 < smallest <= largest or (count > 1 and smallest == largest):
        raise ValueError(f"a ladder of {count} sizes from {smallest:,.0f} to {largest:,.0f} parameters makes no sense")
    for setting in CHOSEN:
        if setting in settings:
            raise ValueError(f"a ladder chooses {setting} by itself; leave it out, or build the model with zoo.make")
    common = dict(vocab=vocab, length=length, **settings)
    shapes = _shapes(family, convention, tuple(common.items()))
    if smallest < shapes.params[0]:
        raise ValueError(
            f"the smallest {family} with a vocabulary of {vocab:,} has {shapes.params[0]:,.0f} {convention.value} "
            f"and {smallest:,.0f} are asked for; ask for more (a larger budget), or take a smaller vocabulary"
        )
    if largest > shapes.params[-1] * (1 + TOLERANCE):
        raise ValueError(
            f"the largest {family} here has {shapes.params[-1]:,.0f} {convention.value}; {largest:,.0f} are asked for"
        )
    below = np.searchsorted(shapes.params, smallest, side="right") - 1
    above = min(np.searchsorted(shapes.params, largest), len(shapes.params) - 1)
    if above - below + 1 < count:
        raise ValueError(
            f"there are only {above - below + 1} shapes of {family} from {smallest:,.0f} to {largest:,.0f} "
            f"{convention.value}, and {count} are asked for"
        )
    badness = [shapes.badness(target) for target in np.geomspace(smallest, largest, count)]
    rungs = _increasing(badness)
    return tuple(_build(family, int(shapes.width[rung]), int(shapes.depth[rung]), common) for rung in rungs)


def _increasing(badness: list[np.ndarray]) -> list[int]:
    """One index a row, strictly increasing, with the least sum of badness: a shortest path, by dynamic programming."""
    totals = [badness[0]]  # least sum up to a row that ends at an index
    for row in badness[1:]:
        before = np.minimum.accumulate(totals[-1])
        totals.append(row + np.concatenate([[np.inf], before[:-1]]))
    chosen, end = [], len(badness[0])
    for total in reversed(totals):
        end = int(np.argmin(total[:end]))
        chosen.append(end)
    return chosen[::-1]


def head_dim(width: int) -> int:
    """Size of a head at a width of the ladder."""
    return max(size for start, size in HEAD_DIMS if width >= start)


def _build(family: str, width: int, depth: int, common: dict[str, Any]) -> Architecture:
    return zoo.make(family, width=width, depth=depth, heads=width // head_dim(width), **common)


@functools.lru_cache(maxsize=64)
def _shapes(family: str, convention: Convention, common: tuple[tuple[str, Any], ...]) -> _Shapes:
    """Enumerates shapes. At a given width, parameters are a straight line in depth, so two costs give all of them."""
    settings, columns = dict(common), []
    width = HEAD_DIMS[0][0]
    while width <= WIDEST:
        if (width // head_dim(width)) % (settings.get("kv_heads") or 1) == 0:
            one, two = (convention.count(_build(family, width, depth, settings).cost(1)) for depth in (1, 2))
            curve = (width / 8) ** (5 / 9)
            depth = np.arange(max(1, math.ceil(curve / BAND)), math.floor(curve * BAND) + 1)
            strain = np.log(depth / curve) / math.log(BAND)
            columns.append((one + (two - one) * (depth - 1), np.full_like(depth, width), depth, strain))
        width += head_dim(width)
    if not columns:
        raise ValueError(f"no shape of {family} has heads that {settings['kv_heads']} key/value heads divide")
    params, width, depth, strain = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((np.abs(strain), params))
    order = order[np.unique(params[order], return_index=True)[1]]  # of two shapes of one size, the one on the curve
    return _Shapes(params[order].astype(np.float64), width[order], depth[order], strain[order])
