"""Figures of evidence: which values of a quantity a table allows, and how an exponent drifts with the runs fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scaling.approaches.held_out import as_held_out
from scaling.approaches.study import Approach, Study
from scaling.certainty.profile import Profile
from scaling.certainty.profile import profiles as profiles_of
from scaling.figures.axes import around, blank, instead, log_axis, power_of_ten, short, ticks
from scaling.figures.theme import LIGHT, Theme
from scaling.fitting.quantities import optimal_params, params_exponent, tokens_per_param
from scaling.laws import CHINCHILLA

if TYPE_CHECKING:
    from scaling.decisions.audit import Audit

_TOP = 1.7  # of a profile panel, in thresholds
_COLUMNS = 3


def profiles(found: Sequence[Profile], *, theme: Theme = LIGHT) -> Figure:
    """Profile likelihoods, one panel a quantity: how much worse the best fit is with the quantity held at a value.

    Args:
        found: as `scaling.certainty.profile.profiles` returns them.
        theme: colours.

    Raises:
        ValueError: nothing to draw.
    """
    if not found:
        raise ValueError("no profiles to draw")
    columns = min(len(found), _COLUMNS)
    rows = -(-len(found) // columns)
    with mpl.rc_context(theme.settings):
        figure, panels = blank(max(3.2 * columns, 4.2), 2.7 * rows, rows, columns, squeeze=False)
        for axes, each in zip(panels.flat, found, strict=False):
            _profile(axes, each, theme)
        for axes in panels.flat[len(found) :]:
            axes.set_axis_off()
        for axes in panels[:, 0]:
            axes.set_ylabel("rise of the objective\n(interval ends at 1)")
    return figure


def what_the_runs_allow(study: Study, held_out=None, *, theme: Theme = LIGHT) -> Figure:
    """Profile likelihoods of approach 3: its parameters, the exponent a, and the optimum of a larger budget.

    Args:
        study: what to draw.
        held_out: the budget of the first is the one asked about; otherwise ten times the largest fitted.
        theme: colours.
    """
    if study.parametric is None:
        return instead(study.missing[Approach.PARAMETRIC], theme=theme)
    held, cost = as_held_out(held_out), study.cost
    flops = held[0].flops if held else 10 * float(study.view["flops"].max())
    derived = (
        params_exponent(CHINCHILLA, cost),
        optimal_params(CHINCHILLA, cost, flops),
        tokens_per_param(CHINCHILLA, cost, flops),
    )
    fit = study.parametric.bootstrap.fit
    try:
        found = profiles_of(fit, (*fit.law.names, *derived))
    except ValueError as error:
        return instead(str(error), theme=theme)
    return profiles(found, theme=theme)


def _profile(axes, found: Profile, theme: Theme) -> None:
    share = found.increase / found.threshold
    near = share <= _TOP * 1.3
    values, share = found.values[near], share[near]
    low, high = values.min(), values.max()
    inside = (low if found.open_low else found.estimate.low, high if found.open_high else found.estimate.high)
    label = power_of_ten if low >= 1e13 else short if high >= 1e3 else "{:.3g}".format
    axes.axvspan(*inside, color=theme.approaches[2], alpha=0.14, linewidth=0, zorder=0)
    axes.axhline(1, color=theme.ink, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    axes.plot(values, share, "-o", color=theme.approaches[2], linewidth=1.8, markersize=2.8, zorder=3)
    axes.plot(found.estimate.value, 0, "D", color=theme.ink, markerfacecolor=theme.paper, markersize=6, zorder=4)
    if found.quantity.positive and low > 0:
        axes.set_xscale("log")
        places = ticks(low, high, 4)
    else:
        places = mpl.ticker.MaxNLocator(4).tick_values(low, high)[1:-1]
    axes.set_xticks(places, [label(place) for place in places])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set_ylim(-0.12, _TOP)
    axes.set_title(found.quantity.name)
    ends = [
        ("below " if found.open_low else "") + label(inside[0]),
        ("above " if found.open_high else "") + label(inside[1]),
    ]
    axes.set_xlabel(f"{label(found.estimate.value)} ({ends[0]} to {ends[1]})")
    for is_open, x, side in ((found.open_low, 0.03, "left"), (found.open_high, 0.97, "right")):
        if is_open:
            axes.text(
                x, 0.93, "open: no end found", transform=axes.transAxes, ha=side, va="top", fontsize=8.5,
                color=theme.accent,
            )  # fmt: skip


def exponent_drift(found: Audit, *, theme: Theme = LIGHT) -> Figure:
    """Exponents fitted below rising compute cut-offs, and the value and interval of the whole table.

    Args:
        found: as `scaling.audit` returns it.
        theme: colours.
    """
    with mpl.rc_context(theme.settings):
        if not found.drifts:
            return instead("No cut-off leaves enough runs below and above it, so no drift can be seen.", theme=theme)
        figure, panels = blank(3.2 * len(found.drifts), 3.2, 1, len(found.drifts), squeeze=False)
        for axes, drift in zip(panels[0], found.drifts, strict=True):
            *below, whole = drift.estimates
            colour = theme.accent if drift.moves else theme.approaches[2]
            axes.axhspan(
                whole.low, whole.high, color=theme.approaches[2], alpha=0.16, linewidth=0, label="all runs, 95 %"
            )
            axes.axhline(whole.value, color=theme.approaches[2], linewidth=1.8)
            value = np.array([each.value for each in below])
            reach = np.abs(np.array([[each.low, each.high] for each in below]).T - value)
            axes.errorbar(
                drift.cutoffs[:-1], value, yerr=reach, fmt="s" if drift.moves else "o", color=colour, capsize=3,
                markersize=6, label="runs below the cut-off, 95 %",
            )  # fmt: skip
            log_axis(axes, "x", around(drift.cutoffs[:-1], 0.12), power_of_ten, 4)
            axes.set_title(f"{drift.quantity}: {'drifts' if drift.moves else 'holds'}", fontsize=10)
            axes.set_xlabel("cut-off, FLOPs")
        panels[0, 0].set_ylabel("exponent")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
