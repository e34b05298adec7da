"""Figures of a study: loss against compute, IsoFLOP parabolas, optimal sizes, predicted against measured.

Drawn with matplotlib's objects (no global state), as PNG and SVG. Order is shown by lightness and kinds by shape, so
that nothing depends on telling hues apart and all of it survives a grey printer.
"""

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from scaling.held_out import HeldOut, as_held_out
from scaling.study import Approach, Study

_MARKERS = "osD^vP*X<>hp"
_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        ink: text and axes.
        paper: background.
        faint: grid.
        accent: the held-out run.
        approaches: one colour an approach (from the palette of Okabe and Ito).
        ramp: the part of the sequential colour map that stands out from the paper.
    """

    ink: str
    paper: str
    faint: str
    accent: str
    approaches: tuple[str, str, str]
    ramp: tuple[float, float]

    @property
    def settings(self) -> dict:
        """Matplotlib settings of the theme."""
        text = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
        return dict.fromkeys(text, self.ink) | {
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "grid.color": self.faint,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "font.size": 10,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "svg.hashsalt": "scaling",
        }


LIGHT = Theme("#1b1f24", "#ffffff", "#e4e7eb", "#d55e00", ("#0072b2", "#b3568a", "#007a5a"), (0.0, 0.82))
DARK = Theme("#e6e9ee", "#14171c", "#2b3038", "#ff9a3c", ("#56b4e9", "#e79ac6", "#3fd0a4"), (0.28, 1.0))


def short(value: float) -> str:
    """A count for people: 950, 12k, 3.4M, 70B, 1.4T."""
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def power_of_ten(value: float) -> str:
    """A number as 8 × 10¹¹."""
    mantissa, exponent = f"{value:.1e}".split("e")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    mantissa = mantissa.removesuffix(".0")
    return ten if mantissa == "1" else f"{mantissa}×{ten}"


def _ticks(low: float, high: float, wanted: int) -> list[float]:
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


def _log_axis(axes: Axes, which: str, limits: tuple[float, float], label: Callable[[float], str], wanted: int = 6):
    """A log axis with a few round labelled ticks and no others."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(*limits)
    ticks = _ticks(*limits, wanted)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([label(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _around(values: Iterable[float], room: float = 0.06) -> tuple[float, float]:
    values = np.asarray([value for value in values if np.isfinite(value) and value > 0])
    low, high = np.log(values.min()), np.log(values.max())
    margin = max(room * (high - low), 0.01)
    return float(np.exp(low - margin)), float(np.exp(high + margin))


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **spacing):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **spacing)


def _ramp(theme: Theme):
    colours = mpl.colormaps["viridis"](np.linspace(*theme.ramp, 256))
    return mpl.colors.ListedColormap(colours)


def _held_out_marks(axes: Axes, held: tuple[HeldOut, ...], x: Callable[[HeldOut], float], theme: Theme) -> None:
    for i, each in enumerate(held):
        low, high = each.predicted.value - each.predicted.low, each.predicted.high - each.predicted.value
        axes.errorbar(
            x(each),
            each.predicted.value,
            yerr=[[low], [high]],
            fmt="_",
            markersize=24,
            markeredgecolor=theme.accent,
            markeredgewidth=1.8,
            ecolor=theme.accent,
            elinewidth=1.8,
            capsize=5,
            zorder=6,
            label="held-out run: predicted, 95 % interval" if i == 0 else None,
        )
        if each.loss is not None:
            axes.plot(
                x(each),
                each.loss,
                "*",
                color=theme.accent,
                markeredgecolor=theme.ink,
                markeredgewidth=0.7,
                markersize=13,
                zorder=7,
                linestyle="none",
                label="held-out run: measured" if i == 0 else None,
            )


def loss_against_compute(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """Every run's loss against its compute, the training curves behind, the compute-optimal loss and its interval."""
    held, view = as_held_out(held_out), study.view
    with mpl.rc_context(theme.settings):
        figure, axes = _figure(7.2, 4.6)
        norm, ramp = LogNorm(*_around(view["params"], 0.0)), _ramp(theme)
        losses = [*view["loss"], *(each.predicted.low for each in held), *(each.loss or np.nan for each in held)]
        if study.curves is not None:
            top = np.exp(np.log(max(losses)) + 0.6 * np.log(max(losses) / min(losses)))
            for number, (_, curve) in enumerate(study.curves.groupby("run")):
                curve = curve.sort_values("flops")
                label = None if number else "loss in training"
                colour = ramp(norm(curve["params"].iloc[0]))
                axes.plot(curve["flops"], curve["loss"], color=colour, alpha=0.35, linewidth=0.9, zorder=1, label=label)
            losses.append(top)
        axes.scatter(
            view["flops"], view["loss"], c=view["params"], norm=norm, cmap=ramp, s=30, zorder=3,
            edgecolors=theme.paper, linewidths=0.6,
        )  # fmt: skip
        first, last = view["flops"].min(), view["flops"].max()
        end = max([last * 2, *(each.flops * 1.5 for each in held)])
        grid = np.geomspace(first, end, 60)
        optima = [study.optimum(flops).loss for flops in grid]
        if optima[0] is not None:
            value = np.array([each.value for each in optima])
            colour = theme.approaches[list(Approach).index(study.choice)]
            inside = grid <= last * 1.0001
            axes.fill_between(
                grid, [e.low for e in optima], [e.high for e in optima], color=colour, alpha=0.2, linewidth=0, zorder=2
            )
            axes.plot(
                grid[inside], value[inside], color=colour, linewidth=2, zorder=4, label="compute-optimal loss, 95 %"
            )
            edge = np.flatnonzero(inside)[-1]
            axes.plot(
                grid[edge:],
                value[edge:],
                color=colour,
                linewidth=2,
                linestyle=(0, (4, 2)),
                zorder=4,
                label="extrapolated",
            )
            losses += [value.min()]
        _held_out_marks(axes, held, lambda each: each.flops, theme)
        start = first if study.curves is None else study.curves["flops"].quantile(0.02)
        _log_axis(axes, "x", _around([start, end], 0.03), power_of_ten)
        _log_axis(axes, "y", _around(losses), lambda value: f"{value:g}")
        axes.set_xlabel(f"compute C ({study.convention.flops}), FLOPs")
        axes.set_ylabel("held-out loss L, nats per token")
        axes.legend(loc="upper right")
        bar = figure.colorbar(ScalarMappable(norm, ramp), ax=axes, pad=0.01, aspect=30)
        bar.outline.set_visible(False)
        bar.set_label(f"parameters N ({study.convention.params})")
        _log_axis(bar.ax, "y", (norm.vmin, norm.vmax), short, 5)
        bar.ax.grid(visible=False)
    return figure


def isoflop_parabolas(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """Loss against size at each budget, the parabolas of approach 2 and their minima."""
    view, result = study.view, study.isoflop
    with mpl.rc_context(theme.settings):
        figure, axes = _figure(7.2, 4.6)
        if result is None:
            axes.text(0.5, 0.5, study.missing[Approach.ISOFLOP], ha="center", va="center", wrap=True)
            axes.set_axis_off()
            return figure
        ramp, budgets = _ramp(theme), result.budgets
        for i, budget in enumerate(budgets):
            colour = ramp(i / max(len(budgets) - 1, 1))
            cell = view.iloc[budget.rows]
            marker = _MARKERS[i % len(_MARKERS)]
            name = f"{power_of_ten(budget.flops)} FLOPs" + (", left out" if budget.refused else "")
            hollow = theme.paper if budget.refused else colour
            axes.plot(
                cell["params"], cell["loss"], marker, color=colour, markersize=5.5, zorder=3, label=name,
                markerfacecolor=hollow, linestyle="none",
            )  # fmt: skip
            if np.isfinite(budget.coefficients).all():
                sizes = np.geomspace(cell["params"].min() / 1.1, cell["params"].max() * 1.1, 100)
                style = ":" if budget.refused else "-"
                axes.plot(sizes, budget.curve(sizes), style, color=colour, linewidth=1.3, alpha=0.9, zorder=2)
        good = [budget for budget in budgets if not budget.refused]
        for i, budget in enumerate(good):
            error = None
            if budget.draws is not None:
                low, high = np.exp(np.nanquantile(budget.draws[:, 0], [0.025, 0.975]))
                error = [[max(budget.params - low, 0)], [max(high - budget.params, 0)]]
            axes.errorbar(
                budget.params, budget.loss, xerr=error, fmt="D", color=theme.ink, markerfacecolor=theme.paper,
                markersize=6.5, capsize=3, elinewidth=1.2, zorder=5, label="minimum, 95 %" if i == 0 else None,
            )  # fmt: skip
        axes.plot([b.params for b in good], [b.loss for b in good], "--", color=theme.ink, linewidth=0.9, zorder=4)
        _log_axis(axes, "x", _around(view["params"]), short, 7)
        _log_axis(axes, "y", _around(view["loss"]), lambda value: f"{value:g}")
        axes.set_xlabel(f"parameters N ({study.convention.params})")
        axes.set_ylabel("held-out loss L, nats per token")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def optimal_sizes(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """Compute-optimal parameters and tokens against compute, by every approach."""
    held, view, exponents = as_held_out(held_out), study.view, study.exponents()
    with mpl.rc_context(theme.settings):
        figure, panels = _figure(9.6, 4.4, 1, 2)
        last = view["flops"].max()
        end = max([last * 2, *(each.flops * 1.5 for each in held)])
        grid = np.geomspace(view["flops"].min() / 1.2, end, 30)
        optima = [study.optima(flops) for flops in grid]
        for axes, name, letter in zip(panels, ("params", "tokens"), "ab", strict=True):
            shown = []
            for i, approach in enumerate(each for each in Approach if each in exponents):
                index = list(Approach).index(approach)
                colour, style = theme.approaches[index], ("--", "-.", "-")[index]
                estimates = [getattr(each[approach], name) for each in optima]
                value = np.array([each.value for each in estimates])
                a = exponents[approach][0 if name == "params" else 1]
                interval = f" ({a.low:.2f} to {a.high:.2f})" if np.isfinite(a.low) else ""
                label = f"{approach.value}, {letter} = {a.value:.2f}{interval}"
                axes.plot(grid, value, linestyle=style, color=colour, linewidth=2, label=label, zorder=3 + i)
                shown += [value[0], value[-1]]
                if approach is study.choice:
                    low, high = ([getattr(each, end) for each in estimates] for end in ("low", "high"))
                    axes.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
            if study.isoflop is not None:
                good = [budget for budget in study.isoflop.budgets if not budget.refused]
                index = list(Approach).index(Approach.ISOFLOP)
                axes.plot(
                    [b.flops for b in good], [getattr(b, name) for b in good], "D", color=theme.approaches[index],
                    markerfacecolor=theme.paper, markersize=6, zorder=7, label="parabola minima", linestyle="none",
                )  # fmt: skip
            if study.frontier is not None:
                points = study.frontier.points
                axes.plot(
                    points["flops"], points[name], ".", color=theme.approaches[0], markersize=4.5, alpha=0.8,
                    zorder=2, label="envelope", linestyle="none",
                )  # fmt: skip
                shown += points.loc[points["flops"] >= grid[0], name].agg(["min", "max"]).tolist()
            for i, each in enumerate(held):
                axes.plot(
                    each.flops, getattr(each, name), "*", color=theme.accent, markeredgecolor=theme.ink,
                    markeredgewidth=0.7, markersize=13, zorder=8, linestyle="none",
                    label="held-out run" if i == 0 else None,
                )  # fmt: skip
                shown.append(getattr(each, name))
            _log_axis(axes, "x", _around([*grid], 0.02), power_of_ten, 5)
            _log_axis(axes, "y", _around(shown, 0.08), short, 7)
            axes.set_xlabel(f"compute C ({study.convention.flops}), FLOPs")
            what = f"parameters N_opt ({study.convention.params})" if name == "params" else "training tokens D_opt"
            axes.set_ylabel(f"compute-optimal {what}".replace("N_opt", "$N_{opt}$").replace("D_opt", "$D_{opt}$"))
            axes.legend(loc="upper left", handlelength=2.6)
            top = axes.get_ylim()
            room = np.exp(0.42 * np.log(top[1] / top[0]))  # for the legend, above the lines
            _log_axis(axes, "y", (top[0], top[1] * room), short, 7)
    return figure


def predicted_against_measured(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """Predicted against measured loss of every run, and the residuals in per cent."""
    held, view = as_held_out(held_out), study.view
    with mpl.rc_context(theme.settings):
        if study.parametric is None:
            figure, axes = _figure(7.2, 4.6)
            axes.text(0.5, 0.5, study.missing[Approach.PARAMETRIC], ha="center", va="center", wrap=True)
            axes.set_axis_off()
            return figure
        figure, (axes, below) = _figure(7.2, 6.2, 2, 1, height_ratios=[2.6, 1], sharex=True)
        fit = study.parametric.bootstrap.fit
        predicted, measured = fit.predict(fit.columns), view["loss"].to_numpy()
        norm, ramp = LogNorm(*_around(view["flops"], 0.0)), _ramp(theme)
        ends = _around([*predicted, *measured, *(each.predicted.low for each in held)], 0.05)
        axes.plot(ends, ends, color=theme.ink, linewidth=1, label="predicted = measured", zorder=2)
        band = 100 * 1.96 * study.parametric.noise
        below.axhspan(-band, band, color=theme.faint, zorder=0)
        below.axhline(0, color=theme.ink, linewidth=1, zorder=2)
        points = {"c": view["flops"], "norm": norm, "cmap": ramp, "s": 32, "zorder": 3}
        points |= {"edgecolors": theme.paper, "linewidths": 0.6}
        axes.scatter(predicted, measured, **points)
        below.scatter(predicted, 100 * (measured / predicted - 1), **points)
        for i, each in enumerate(held):
            if each.loss is None:
                continue
            value = each.predicted
            star = {"color": theme.accent, "markeredgecolor": theme.ink, "markeredgewidth": 0.7, "markersize": 13}
            bar = {"fmt": "*", "ecolor": theme.accent, "elinewidth": 1.8, "capsize": 4, "zorder": 6}
            wide = [[value.value - value.low], [value.high - value.value]]
            label = "held-out run, 95 % prediction interval" if i == 0 else None
            axes.errorbar(value.value, each.loss, xerr=wide, label=label, **star, **bar)
            reach = [[100 * (value.high / value.value - 1)], [100 * (1 - value.low / value.value)]]
            below.errorbar(value.value, 100 * each.error, yerr=reach, **star, **bar)
        for axis in (axes, below):
            _log_axis(axis, "x", ends, lambda value: f"{value:g}", 7)
        _log_axis(axes, "y", ends, lambda value: f"{value:g}", 7)
        axes.tick_params(labelbottom=False)
        axes.set_ylabel("measured loss, nats per token")
        below.set_ylabel("measured over\npredicted, %")
        below.set_xlabel("loss predicted by approach 3, nats per token")
        handles = [*axes.get_legend_handles_labels()[0], Line2D([], [], color=theme.faint, linewidth=8)]
        labels = [*axes.get_legend_handles_labels()[1], "noise of one run, 95 %"]
        axes.legend(handles, labels, loc="upper left")
        bar = figure.colorbar(ScalarMappable(norm, ramp), ax=[axes, below], pad=0.01, aspect=40)
        bar.outline.set_visible(False)
        bar.set_label(f"compute C ({study.convention.flops}), FLOPs")
        _log_axis(bar.ax, "y", (norm.vmin, norm.vmax), power_of_ten, 5)
        bar.ax.grid(visible=False)
    return figure


FIGURES: dict[str, Callable[..., Figure]] = {
    "loss_against_compute": loss_against_compute,
    "isoflop_parabolas": isoflop_parabolas,
    "optimal_sizes": optimal_sizes,
    "predicted_against_measured": predicted_against_measured,
}
"""Every figure of a study by the name of its file."""


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a PNG or SVG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "scaling"}):
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def save(study: Study, folder: str | Path, held_out=None, *, theme: Theme = LIGHT) -> tuple[Path, ...]:
    """Write every figure as PNG and SVG.

    Args:
        study: what to draw.
        folder: made when it is not there.
        held_out: a `HeldOut`, a mapping of its fields, or several; drawn beside the prediction.
        theme: colours.

    Returns:
        The files, each written whole or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        figure = draw(study, held_out, theme=theme)
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            partial = folder / f".{path.name}.{os.getpid()}.partial"
            partial.write_bytes(render(figure, kind))
            os.replace(partial, path)
            written.append(path)
    return tuple(written)
