"""What to know before trusting a study, in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from scaling.approaches.disagreement import disagreements

if TYPE_CHECKING:
    from scaling.approaches.study import Study


class Severity(Enum):
    """How a diagnostic should be read."""

    GOOD = "good"
    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True)
class Diagnostic:
    """One finding about a table or a fit, in a sentence for people."""

    severity: Severity
    text: str


def diagnose(study: Study, notes: tuple[str, ...]) -> tuple[Diagnostic, ...]:
    """Findings about a study, the worrying ones first.

    Args:
        study: all its fits done.
        notes: what checking the table derived or dropped.
    """
    found = [Diagnostic(Severity.NOTE, note) for note in notes]
    found += _missing(study)
    found += _law(study)
    found += _backtest(study)
    found += _agreement(study)
    found += _design(study)
    for result in (study.isoflop, study.frontier):
        found += [Diagnostic(Severity.NOTE, note) for note in (result.notes if result else ())]
    order = (Severity.WARNING, Severity.GOOD, Severity.NOTE)
    return tuple(sorted(found, key=lambda each: order.index(each.severity)))


def _missing(study: Study) -> list[Diagnostic]:
    return [
        Diagnostic(Severity.WARNING, f"Approach {approach.value} could not be fitted: {reason}.".replace("..", "."))
        for approach, reason in study.missing.items()
    ]


def _law(study: Study) -> list[Diagnostic]:
    if study.parametric is None:
        return []
    fit = study.parametric.bootstrap.fit
    found = [Diagnostic(Severity.WARNING, f"Approach 3: {warning}") for warning in fit.warnings]
    if fit.certificate.passed:
        found.append(
            Diagnostic(
                Severity.GOOD,
                f"Approach 3 is at a certified optimum, reached by {fit.certificate.share:.0%} of "
                f"{fit.certificate.starts} starts; its residuals have a standard deviation of {fit.sigma:.2%} of the "
                f"loss, the largest {np.max(np.abs(fit.residuals)):.2%}.",
            )
        )
    if study.parametric.bootstrap.failed:
        found.append(
            Diagnostic(
                Severity.WARNING,
                f"{study.parametric.bootstrap.failed} of {study.resamples} bootstrap refits did not reach an optimum "
                "and were left out, so the intervals are too narrow.",
            )
        )
    return found


def _backtest(study: Study) -> list[Diagnostic]:
    test = study.backtest
    if test is None or study.parametric is None:
        return []
    sigma = study.parametric.bootstrap.fit.sigma
    bad = test.error > 3 * sigma and test.error > 0.01
    text = (
        f"Fitted without its {test.predicted} largest runs, the law predicts them within {test.error:.2%} "
        f"({test.bias:+.2%} on average), {test.reach:.3g} times beyond the compute it had seen."
    )
    if bad:
        text += f" That is more than the noise of {sigma:.2%}: the law drifts with scale, and intervals were widened."
    return [Diagnostic(Severity.WARNING if bad else Severity.GOOD, text)]


def _agreement(study: Study) -> list[Diagnostic]:
    return [*_apart(study), *(Diagnostic(Severity.NOTE, str(each)) for each in disagreements(study))]


def _apart(study: Study) -> list[Diagnostic]:
    exponents = {approach: a for approach, (a, _) in study.exponents().items() if np.isfinite([a.low, a.high]).all()}
    apart = [
        f"{one.value} ({exponents[one].value:.2f}) and {other.value} ({exponents[other].value:.2f})"
        for one, other in combinations(exponents, 2)
        if exponents[one].high < exponents[other].low or exponents[other].high < exponents[one].low
    ]
    if apart:
        return [
            Diagnostic(
                Severity.WARNING, f"The exponents of approaches {'; '.join(apart)} disagree beyond their intervals."
            )
        ]
    if len(exponents) > 1:
        values = ", ".join(f"{a.value:.2f}" for a in exponents.values())
        return [
            Diagnostic(
                Severity.GOOD, f"The approaches agree on the exponent of N_opt within their intervals: {values}."
            )
        ]
    return []


def _design(study: Study) -> list[Diagnostic]:
    view, found = study.view, []
    spans = {name: view[name].max() / view[name].min() for name in ("params", "tokens", "flops")}
    text = (
        f"{len(view)} runs span {spans['params']:.3g}x in parameters, {spans['tokens']:.3g}x in tokens and "
        f"{spans['flops']:.3g}x in compute. {study.convention}, {study.cost}."
    )
    found.append(Diagnostic(Severity.NOTE, text))
    if spans["flops"] < 100:
        found.append(
            Diagnostic(
                Severity.NOTE,
                "Compute spans less than two orders of magnitude, so exponents are local: they describe this range and "
                "its near surroundings, not frontier scale.",
            )
        )
    if study.cost.scatter > 0.05:
        found.append(
            Diagnostic(
                Severity.WARNING,
                f"FLOPs per token are a power of N only within {study.cost.scatter:.0%} (shapes differ at equal N?), "
                "so the optima of approach 3 are as uncertain.",
            )
        )
    if "unique_tokens" in view:
        repeats = (view["tokens"] / view["unique_tokens"]).max()
        if repeats > 1.5:
            found.append(
                Diagnostic(
                    Severity.NOTE if repeats <= 4 else Severity.WARNING,
                    f"Some runs saw their data up to {repeats:.1f} times; none of these laws knows the lower worth of "
                    "repeated tokens.",
                )
            )
    return found
