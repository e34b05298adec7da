"""Figures along compute: the loss of every run, and how to spend a budget."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scaling.approaches.held_out import as_held_out
from scaling.approaches.study import Approach, Study
from scaling.figures.axes import (
    around,
    bar_beside,
    blank,
    held_out_losses,
    log_axis,
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

STYLES = dict(zip(Approach, ((0, (5, 2)), (0, (5, 1.5, 1, 1.5)), "-"), strict=True))
"""Dashes of each approach."""

_MOST_CURVES = 300


def loss_against_compute(
    study: Study, held_out=None, *, theme: Theme = LIGHT, beside: Sequence[PublishedLaw] = ()
) -> Figure:
    """Every run's loss against its compute, the training curves behind, the compute-optimal loss and its interval.

    Args:
        study: what to draw.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        theme: colours.
        beside: published laws, drawn at their own optimum.
    """
    held, view = as_held_out(held_out), study.view
    with mpl.rc_context(theme.settings):
        figure, axes = blank(7.2, 4.6)
        losses = [*view["loss"], *(each.predicted.low for each in held), *(each.loss or np.nan for each in held)]
        norm = scatter(axes, view["flops"], view["loss"], view["params"], theme)
        if study.curves is not None:
            top = np.exp(np.log(max(losses)) + 0.6 * np.log(max(losses) / min(losses)))
            for number, (_, curve) in enumerate(study.curves.groupby("run")):
                if number == _MOST_CURVES:
                    break
                curve = curve.sort_values("flops")
                label = None if number else "loss in training"
                colour = theme.colormap(norm(curve["params"].iloc[0]))
                axes.plot(curve["flops"], curve["loss"], color=colour, alpha=0.35, linewidth=0.9, zorder=1, label=label)
            losses.append(top)
        first, last = view["flops"].min(), view["flops"].max()
        end = max([last * 3, *(each.flops * 1.5 for each in held)])
        grid = np.unique([*np.geomspace(first, last, 40), *np.geomspace(last, end, 12)])
        optima = [study.optimum(flops).loss for flops in grid]
        if optima[0] is not None:
            value = np.array([each.value for each in optima])
            colour = theme.approaches[list(Approach).index(study.choice)]
            low, high = [each.low for each in optima], [each.high for each in optima]
            axes.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
            inside, line = grid <= last, {"color": colour, "linewidth": 2, "zorder": 4}
            axes.plot(grid[inside], value[inside], label="compute-optimal loss, 95 %", **line)
            axes.plot(grid[~inside], value[~inside], linestyle=(0, (4, 2)), label="extrapolated", **line)
            losses += [value.min()]
        losses += draw_beside(axes, beside, grid, 2, theme)
        held_out_losses(axes, held, theme)
        start = first if study.curves is None else study.curves["flops"].quantile(0.02)
        log_axis(axes, "x", around([start, end], 0.03), power_of_ten)
        log_axis(axes, "y", around(losses), plain)
        label_n, label_c = names(study)
        axes.set_xlabel(label_c)
        axes.set_ylabel("held-out loss L, nats per token")
        axes.legend(loc="upper right")
        bar_beside(figure, axes, norm, theme, label_n, short)
    return figure


def optimal_sizes(study: Study, held_out=None, *, theme: Theme = LIGHT, beside: Sequence[PublishedLaw] = ()) -> Figure:
    """Compute-optimal parameters and tokens against compute, by every approach.

    Args:
        study: what to draw.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        theme: colours.
        beside: published laws, drawn at their own optimum.
    """
    held, view = as_held_out(held_out), study.view
    with mpl.rc_context(theme.settings):
        figure, panels = blank(9.6, 5.6, 1, 2)
        end = max([view["flops"].max() * 2, *(each.flops * 1.5 for each in held)])
        grid = np.geomspace(view["flops"].min() / 1.2, end, 30)
        optima = [study.optima(flops) for flops in grid]
        for axes, name, letter in zip(panels, ("params", "tokens"), "ab", strict=True):
            rows = selection(len(view))
            axes.plot(
                view["flops"].iloc[rows], view[name].iloc[rows], "o", color=theme.soft, markersize=2.5, zorder=1,
                linestyle="none", label="runs", alpha=0.55, markeredgewidth=0,
            )  # fmt: skip
            shown = _lines(axes, study, optima, grid, name, letter, theme)
            shown += _points(axes, study, grid, name, theme)
            shown += draw_beside(axes, beside, grid, ("params", "tokens").index(name), theme)
            for i, each in enumerate(held):
                label = "held-out run" if i == 0 else None
                axes.plot(each.flops, getattr(each, name), zorder=8, label=label, **star(theme))
                shown.append(getattr(each, name))
            log_axis(axes, "x", around([*grid], 0.02), power_of_ten, 5)
            log_axis(axes, "y", around(shown, 0.12), short, 7)
            axes.set_xlabel(names(study)[1])
            what = f"parameters $N_{{opt}}$ ({study.convention.params})" if name == "params" else "tokens $D_{opt}$"
            axes.set_ylabel(f"compute-optimal {what}")
            axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.14), handlelength=3.2)
    return figure


def _lines(axes, study: Study, optima: list, grid: np.ndarray, name: str, letter: str, theme: Theme) -> list[float]:
    """One line an approach, a band about the chosen one; returns what must be in view."""
    shown, exponents = [], study.exponents()
    for approach in (each for each in Approach if each in exponents):
        colour = theme.approaches[list(Approach).index(approach)]
        estimates = [getattr(each[approach], name) for each in optima]
        value = [each.value for each in estimates]
        exponent = exponents[approach]["ab".index(letter)]
        interval = f" ({exponent.low:.2f} to {exponent.high:.2f})" if np.isfinite(exponent.low) else ""
        label = f"{approach.value}, {letter} = {exponent.value:.2f}{interval}"
        axes.plot(grid, value, linestyle=STYLES[approach], color=colour, linewidth=2, label=label, zorder=5)
        shown += [value[0], value[-1]]
        if approach is study.choice:
            low, high = [each.low for each in estimates], [each.high for each in estimates]
            axes.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
    return shown


def _points(axes, study: Study, grid: np.ndarray, name: str, theme: Theme) -> list[float]:
    """The parabola minima and the envelope that approaches 2 and 1 are lines through; returns what must be in view."""
    shown = []
    if study.isoflop is not None:
        good = [budget for budget in study.isoflop.budgets if not budget.refused]
        axes.plot(
            [b.flops for b in good], [getattr(b, name) for b in good], "D", color=theme.approaches[1],
            markerfacecolor=theme.paper, markersize=5.5, zorder=7, label="parabola minima", linestyle="none",
        )  # fmt: skip
        shown += [getattr(budget, name) for budget in good]
    if study.frontier is not None:
        points = study.frontier.points
        axes.plot(
            points["flops"], points[name], "o", color=theme.approaches[0], markersize=3, zorder=6, label="envelope",
            linestyle="none",
        )  # fmt: skip
        shown += points.loc[points["flops"] >= grid[0], name].agg(["min", "max"]).tolist()
    return shown
