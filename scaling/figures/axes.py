"""What every figure is made of: log axes with a few round ticks, ramps and their bars, counts for people."""

import textwrap
from collections.abc import Callable, Iterable

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from scaling.approaches.held_out import HeldOut
from scaling.figures.theme import Theme

MOST_POINTS = 2000
"""Runs drawn as points; of a larger table an even selection, and the figure says so."""

_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def short(value: float) -> str:
    """A count for people: 950, 12k, 3.4M, 70B, 1.4T, 2×10¹⁵."""
    if value >= 0.9995e15:
        return power_of_ten(value)
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def power_of_ten(value: float) -> str:
    """A number as 8×10¹¹."""
    mantissa, exponent = f"{value:.1e}".split("e")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    mantissa = mantissa.removesuffix(".0")
    return ten if mantissa == "1" else f"{mantissa}×{ten}"


def plain(value: float) -> str:
    """A number as people write it, for losses."""
    return f"{value:g}"


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round values between two ends, evenly enough in log, at most a few more than wanted."""
    best: list[float] = []
    for mantissas in _MANTISSAS:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        found = [m * 10.0**decade for decade in decades for m in mantissas if low <= m * 10.0**decade <= high]
        if mantissas == (1,) and len(found) > wanted:  # many decades: every second, third, ...
            return found[:: -(-len(found) // wanted)]
        if len(found) <= wanted:
            best = found
    if high / low < 8:  # under a decade, evenly spread values read better
        best = [value for value in MaxNLocator(wanted).tick_values(low, high) if low <= value <= high]
    return best


def log_axis(axes: Axes, which: str, limits: tuple[float, float], label: Callable[[float], str], wanted: int = 6):
    """A log axis with a few round labelled ticks and no others."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(*limits)
    places = ticks(*limits, wanted)
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter([label(tick) for tick in places]))
    axis.set_minor_locator(NullLocator())


def around(values: Iterable[float], room: float = 0.06) -> tuple[float, float]:
    """Limits of a log axis that holds some positive values, with room at both ends."""
    values = np.asarray([value for value in values if np.isfinite(value) and value > 0])
    low, high = np.log(values.min()), np.log(values.max())
    margin = max(room * (high - low), 0.01)
    return float(np.exp(low - margin)), float(np.exp(high + margin))


def blank(width: float, height: float, rows: int = 1, columns: int = 1, **spacing):
    """A figure without global state, in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **spacing)


def instead(reason: str, *, theme: Theme) -> Figure:
    """A figure that says why there is nothing to draw."""
    with mpl.rc_context(theme.settings):
        figure, axes = blank(7.2, 2.4)
        axes.text(0.5, 0.5, textwrap.fill(reason, 80), ha="center", va="center")
        axes.set_axis_off()
    return figure


def selection(count: int) -> np.ndarray:
    """Rows to draw: all, or `MOST_POINTS` drawn without replacement, the same every time."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST_POINTS, replace=False))


def scatter(axes: Axes, x, y, colour_by, theme: Theme, *, size: float = 30, zorder: float = 3) -> LogNorm:
    """Runs as dots, lighter or darker by a positive column; smaller where there are many. Returns the norm for a bar.

    Args:
        axes: drawn on.
        x: one a run.
        y: one a run.
        colour_by: one a run.
        theme: colours.
        size: of a dot in a table of at most 60 runs, square points.
        zorder: of the dots.
    """
    x, y, colour_by = (np.asarray(each, np.float64) for each in (x, y, colour_by))
    low, high = colour_by.min(), colour_by.max()
    norm = LogNorm(low, high) if high > low else LogNorm(low / 2, high * 2)
    rows = selection(len(x))
    order = rows[np.argsort(-y[rows], kind="stable")]  # the lowest, which matter most, on top
    axes.scatter(
        x[order], y[order], c=colour_by[order], norm=norm, cmap=theme.colormap, zorder=zorder,
        s=size * min(1.0, (60 / len(x)) ** 0.35), edgecolors=theme.paper, linewidths=0.6 if len(x) < 150 else 0.35,
    )  # fmt: skip
    if len(rows) < len(x):
        text = f"{len(rows):,} of {len(x):,} runs drawn"
        axes.text(0.01, 0.01, text, transform=axes.transAxes, fontsize=8, color=theme.soft, zorder=9)
    return norm


def bar_beside(figure: Figure, axes, norm: LogNorm, theme: Theme, title: str, label: Callable[[float], str]) -> None:
    """The bar that explains the shades of dots."""
    bar = figure.colorbar(ScalarMappable(norm, theme.colormap), ax=axes, pad=0.01, aspect=34)
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")  # no hairlines between steps
    bar.set_label(title)
    log_axis(bar.ax, "y", (norm.vmin, norm.vmax), label, 5)
    bar.ax.grid(visible=False)


def star(theme: Theme) -> dict:
    """How the measured loss of a held-out run is drawn."""
    return {
        "marker": "*",
        "color": theme.accent,
        "markeredgecolor": theme.ink,
        "markeredgewidth": 0.7,
        "markersize": 13,
        "linestyle": "none",
    }


def held_out_losses(axes: Axes, held: tuple[HeldOut, ...], theme: Theme) -> None:
    """Predicted interval and measured loss of held-out runs, against compute."""
    for i, each in enumerate(held):
        low, high = each.predicted.value - each.predicted.low, each.predicted.high - each.predicted.value
        axes.errorbar(
            each.flops, each.predicted.value, yerr=[[low], [high]], fmt="_", markersize=24, capsize=5, zorder=6,
            markeredgecolor=theme.accent, markeredgewidth=1.8, ecolor=theme.accent, elinewidth=1.8,
            label="held-out run: predicted, 95 % interval" if i == 0 else None,
        )  # fmt: skip
        if each.loss is not None:
            label = "held-out run: measured" if i == 0 else None
            axes.plot(each.flops, each.loss, zorder=7, label=label, **star(theme))


def names(study) -> tuple[str, str]:
    """What the axes N and C count, under the study's convention."""
    return f"parameters N ({study.convention.params})", f"compute C ({study.convention.flops}), FLOPs"


def middle_of_bins(x, y, *, bins: int) -> pd.DataFrame:
    """Medians of y in bins of equal count along x; columns x, low, middle, high (quartiles)."""
    order = np.argsort(x, kind="stable")
    parts = [rows for rows in np.array_split(order, bins) if len(rows)]
    quartiles = [np.quantile(np.asarray(y)[rows], [0.25, 0.5, 0.75]) for rows in parts]
    at = [float(np.exp(np.mean(np.log(np.asarray(x)[rows])))) for rows in parts]
    return pd.DataFrame(quartiles, columns=["low", "middle", "high"]).assign(x=at)
