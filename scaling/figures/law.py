"""Figures of approach 3: how well the law fits, what it misses, and the landscape it describes."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling.approaches.held_out import as_held_out
from scaling.approaches.study import Approach, Study
from scaling.figures.axes import (
    around,
    bar_beside,
    blank,
    instead,
    log_axis,
    middle_of_bins,
    names,
    plain,
    power_of_ten,
    scatter,
    selection,
    short,
    star,
)  # fmt: skip
from scaling.figures.beside import draw as draw_beside
from scaling.figures.theme import LIGHT, Theme
from scaling.published import PublishedLaw

_LEVELS = 12  # contours of equal loss
_RUNS_A_BIN = 8  # of the running median through residuals, at least
_FAR = 5  # residuals so many times further out than nine in ten are drawn at the edge


def predicted_against_measured(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """Predicted against measured loss of every run, and the residuals in per cent.

    Args:
        study: what to draw.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        theme: colours.
    """
    held, view = as_held_out(held_out), study.view
    with mpl.rc_context(theme.settings):
        if study.parametric is None:
            return instead(study.missing[Approach.PARAMETRIC], theme=theme)
        figure, (axes, below) = blank(7.2, 6.2, 2, 1, height_ratios=[2.6, 1], sharex=True)
        fit = study.parametric.bootstrap.fit
        predicted, measured = fit.predict(fit.columns), view["loss"].to_numpy()
        ends = around([*predicted, *measured, *(each.predicted.low for each in held)], 0.05)
        axes.plot(ends, ends, color=theme.ink, linewidth=1, label="predicted = measured", zorder=2)
        band = 100 * 1.96 * study.parametric.noise
        below.axhspan(-band, band, color=theme.faint, zorder=0)
        below.axhline(0, color=theme.ink, linewidth=1, zorder=2)
        norm = scatter(axes, predicted, measured, view["flops"], theme, size=32)
        scatter(below, predicted, 100 * (measured / predicted - 1), view["flops"], theme, size=32)
        for i, each in enumerate(one for one in held if one.loss is not None):
            value, bar = each.predicted, {"ecolor": theme.accent, "elinewidth": 1.8, "capsize": 4, "zorder": 6}
            mark = star(theme) | bar
            wide = [[value.value - value.low], [value.high - value.value]]
            label = "held-out run, 95 % prediction interval" if i == 0 else None
            axes.errorbar(value.value, each.loss, xerr=wide, label=label, **mark)
            reach = [[100 * (value.high / value.value - 1)], [100 * (1 - value.low / value.value)]]
            below.errorbar(value.value, 100 * each.error, yerr=reach, **mark)
        for axis in (axes, below):
            log_axis(axis, "x", ends, plain, 7)
        log_axis(axes, "y", ends, plain, 7)
        axes.tick_params(labelbottom=False)
        axes.set_ylabel("measured loss, nats per token")
        below.set_ylabel("measured over\npredicted, %")
        below.set_xlabel("loss predicted by approach 3, nats per token")
        handles = [*axes.get_legend_handles_labels()[0], Line2D([], [], color=theme.faint, linewidth=8)]
        axes.legend(handles, [*axes.get_legend_handles_labels()[1], "noise of one run, 95 %"], loc="upper left")
        bar_beside(figure, [axes, below], norm, theme, names(study)[1], power_of_ten)
    return figure


def residuals(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """What the law misses: residuals against parameters, tokens and compute, with their running median.

    Args:
        study: what to draw.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        theme: colours.
    """
    held, view = as_held_out(held_out), study.view
    with mpl.rc_context(theme.settings):
        if study.parametric is None:
            return instead(study.missing[Approach.PARAMETRIC], theme=theme)
        figure, panels = blank(9.6, 3.9, 1, 3, sharey=True)
        per_cent = 100 * np.expm1(study.parametric.bootstrap.fit.residuals)
        measured = [100 * each.error for each in held if each.loss is not None]
        size = np.abs(per_cent)
        edge = 1.12 * max([min(size.max(), _FAR * np.quantile(size, 0.9)), *map(abs, measured)])
        outside = np.abs(per_cent) > edge
        rows, bins = selection(len(view)), int(np.clip(len(view) // _RUNS_A_BIN, 1, 12))
        label_n, label_c = names(study)
        for axes, name, label in zip(
            panels, ("params", "tokens", "flops"), (label_n, "training tokens D", label_c), strict=True
        ):
            x = view[name].to_numpy(np.float64)
            axes.axhline(0, color=theme.ink, linewidth=1, zorder=2)
            axes.plot(
                x[rows], per_cent[rows], "o", color=theme.soft, alpha=0.75, markersize=4 if len(x) < 150 else 2.5,
                zorder=1, linestyle="none", markeredgewidth=0, label="one run",
            )  # fmt: skip
            for sign, marker in ((1, "^"), (-1, "v")):
                far = outside & (sign * per_cent > 0)
                if not far.any():
                    continue
                axes.plot(
                    x[far], np.full(far.sum(), 0.97 * sign * edge), marker, color=theme.accent, markersize=6,
                    linestyle="none", zorder=3, clip_on=False,
                )  # fmt: skip
            if bins > 4:
                middle = middle_of_bins(x, per_cent, bins=bins)
                style = {"color": theme.approaches[2], "zorder": 4}
                axes.plot(middle["x"], middle["middle"], "-o", markersize=3.5, linewidth=1.8, label="median", **style)
                axes.fill_between(middle["x"], middle["low"], middle["high"], alpha=0.18, linewidth=0, **style)
            for each in held:
                if each.loss is not None:
                    axes.plot(getattr(each, name), 100 * each.error, zorder=5, **star(theme))
            log_axis(axes, "x", around([*x, *(getattr(each, name) for each in held)]), _tick(name), 4)
            axes.set_xlabel(label)
            axes.set_ylim(-edge, edge)
        panels[0].set_ylabel("measured over predicted, %")
        handles, labels = panels[0].get_legend_handles_labels()
        if bins > 4:
            handles, labels = (
                [*handles, Line2D([], [], color=theme.approaches[2], alpha=0.18, lw=8)],
                [*labels, "half of the runs"],
            )
        if outside.any():
            far = Line2D([], [], marker="^", color=theme.accent, linestyle="none")
            handles, labels = [*handles, far], [*labels, f"beyond the figure ({int(outside.sum())})"]
        if measured:
            handles, labels = [*handles, Line2D([], [], **star(theme))], [*labels, "held-out run"]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _tick(name: str):
    return power_of_ten if name == "flops" else short


def iso_loss(study: Study, held_out=None, *, theme: Theme = LIGHT, beside: Sequence[PublishedLaw] = ()) -> Figure:
    """Contours of equal loss over compute and size, and the compute-optimal line through their leftmost points.

    After Hoffmann et al. 2022, figure 4 (left).

    Args:
        study: what to draw.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        theme: colours.
        beside: published laws, drawn at their own optimum.
    """
    held, view = as_held_out(held_out), study.view
    with mpl.rc_context(theme.settings):
        if study.parametric is None:
            return instead(study.missing[Approach.PARAMETRIC], theme=theme)
        figure, axes = blank(7.2, 4.8)
        fit, cost = study.parametric.bootstrap.fit, study.cost
        last = view["flops"].max()
        compute = around([view["flops"].min(), last * 10, *(each.flops for each in held)], 0.02)
        sizes = around([*view["params"], study.optima(compute[1])[Approach.PARAMETRIC].params.value], 0.1)
        flops, params = np.meshgrid(np.geomspace(*compute, 160), np.geomspace(*sizes, 120))
        loss = fit.predict({"params": params, "tokens": cost.tokens(flops, params)})
        # Levels even in what is left above the lowest loss in view, so that they do not crowd at small scale.
        floor = fit.parameters["E"] if fit.parameters["E"] < loss.min() else 0.0
        top = np.quantile(view["loss"], 0.98)
        levels = floor + np.geomspace(loss.min() - floor, max(top - floor, 1.5 * (loss.min() - floor)), _LEVELS)
        contours = axes.contour(
            flops, params, loss, levels=levels, cmap=theme.colormap.reversed(), linewidths=1.1, zorder=2,
            norm=mpl.colors.LogNorm(levels[0], levels[-1]),
        )  # fmt: skip
        rows = selection(len(view))
        axes.plot(
            view["flops"].iloc[rows], view["params"].iloc[rows], "o", color=theme.soft, markeredgewidth=0,
            markersize=3 if len(view) > 150 else 4, linestyle="none", label="runs", zorder=1, alpha=0.75,
        )  # fmt: skip
        grid = np.geomspace(*compute, 50)
        optima = [study.optima(each)[Approach.PARAMETRIC].params for each in grid]
        colour, inside = theme.approaches[2], grid <= last
        axes.fill_between(grid, [e.low for e in optima], [e.high for e in optima], color=colour, alpha=0.2, linewidth=0)
        value, line = np.array([each.value for each in optima]), {"color": colour, "linewidth": 2.2, "zorder": 5}
        axes.plot(grid[inside], value[inside], label="compute-optimal size, 95 %", **line)
        axes.plot(grid[~inside], value[~inside], linestyle=(0, (4, 2)), label="extrapolated", **line)
        draw_beside(axes, beside, grid, 0, theme)
        for i, each in enumerate(held):
            label = "held-out run" if i == 0 else None
            axes.plot(each.flops, each.params, zorder=6, label=label, **star(theme))
        log_axis(axes, "x", compute, power_of_ten)
        log_axis(axes, "y", sizes, short)
        for text in axes.clabel(contours, fmt=lambda level: f"{level:.3g}", fontsize=8, inline_spacing=3):
            text.set_color(theme.ink)
        label_n, label_c = names(study)
        axes.set_xlabel(label_c)
        axes.set_ylabel(label_n)
        axes.set_title("lines of equal loss, nats per token")
        figure.legend(loc="outside lower left", ncols=4)
    return figure
