"""The figure of approach 2: loss against size, one parabola a budget."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scaling.approaches.study import Approach, Study
from scaling.figures.axes import (
    around,
    bar_beside,
    blank,
    instead,
    log_axis,
    names,
    plain,
    power_of_ten,
    selection,
    short,
)  # fmt: skip
from scaling.figures.theme import LIGHT, Theme

_MARKERS = "osD^vP*X<>hp"
_MOST_NAMED = 8  # budgets in a legend; of more, a bar tells the shades apart


def isoflop_parabolas(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """Loss against size at each budget, the parabolas of approach 2 and their minima.

    Args:
        study: what to draw.
        held_out: not drawn here; every figure of a study takes it.
        theme: colours.
    """
    view, result = study.view, study.isoflop
    with mpl.rc_context(theme.settings):
        if result is None:
            return instead(study.missing[Approach.ISOFLOP], theme=theme)
        figure, axes = blank(7.2, 4.6)
        budgets = [budget for budget in result.budgets if len(budget.rows) >= 3]
        stray = [row for budget in result.budgets if len(budget.rows) < 3 for row in budget.rows]
        compute = [budget.flops for budget in budgets]
        norm = LogNorm(min(compute), max(compute)) if len(budgets) > 1 else LogNorm(compute[0] / 2, compute[0] * 2)
        few, drawn = len(budgets) <= _MOST_NAMED, set(selection(len(view)).tolist())
        if stray:
            cell = view.iloc[stray]
            label = "runs of no budget"
            axes.plot(
                cell["params"], cell["loss"], ".", color=theme.soft, markersize=3, zorder=1, linestyle="none",
                label=label,
            )  # fmt: skip
        for i, budget in enumerate(budgets):
            colour = theme.colormap(norm(budget.flops))
            cell = view.iloc[[row for row in budget.rows if row in drawn]]
            name = f"{power_of_ten(budget.flops)} FLOPs" + (", left out" if budget.refused else "")
            axes.plot(
                cell["params"], cell["loss"], _MARKERS[i % len(_MARKERS)], color=colour, zorder=3, linestyle="none",
                markersize=5.5 if len(view) < 150 else 3.5, markerfacecolor=theme.paper if budget.refused else colour,
                label=name if few else None,
            )  # fmt: skip
            if np.isfinite(budget.coefficients).all():
                sizes = np.geomspace(cell["params"].min() / 1.1, cell["params"].max() * 1.1, 80)
                style = ":" if budget.refused else "-"
                axes.plot(sizes, budget.curve(sizes), style, color=colour, linewidth=1.3, alpha=0.9, zorder=2)
        _minima(axes, [budget for budget in budgets if not budget.refused], theme)
        log_axis(axes, "x", around(view["params"]), short, 7)
        log_axis(axes, "y", around(view["loss"]), plain)
        label_n, label_c = names(study)
        axes.set_xlabel(label_n)
        axes.set_ylabel("held-out loss L, nats per token")
        if few:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            handles, labels = axes.get_legend_handles_labels()
            if any(budget.refused for budget in budgets):
                hollow = mpl.lines.Line2D([], [], marker="o", color=theme.soft, markerfacecolor=theme.paper, ls=":")
                handles, labels = [*handles, hollow], [*labels, "budget left out"]
            axes.legend(handles, labels, loc="best")
            bar_beside(figure, axes, norm, theme, label_c, power_of_ten)
    return figure


def _minima(axes, good: list, theme: Theme) -> None:
    """Diamonds at the minima, with the interval of their size, joined by a line."""
    for i, budget in enumerate(good):
        error = None
        if budget.draws is not None:
            low, high = np.exp(np.nanquantile(budget.draws[:, 0], [0.025, 0.975]))
            error = [[max(budget.params - low, 0)], [max(high - budget.params, 0)]]
        axes.errorbar(
            budget.params, budget.loss, xerr=error, fmt="D", color=theme.ink, markerfacecolor=theme.paper,
            markersize=6 if len(good) <= _MOST_NAMED else 4.5, capsize=3, elinewidth=1.2, zorder=5,
            label="minimum, 95 %" if i == 0 else None,
        )  # fmt: skip
    axes.plot([b.params for b in good], [b.loss for b in good], "--", color=theme.ink, linewidth=0.9, zorder=4)
