"""What a comparison of two tables of runs says: verdicts at budgets, where the ranking turns, and how it is shown."""

from dataclasses import dataclass, field

import numpy as np

from scaling.certainty.bootstrap import Bootstrap
from scaling.display import Displayed, Page, Section, interval, plain
from scaling.estimate import Estimate
from scaling.fitting.powerlaw import Compute

_SURE = 0.95


@dataclass(frozen=True)
class Verdict:
    """Both tables at one budget.

    Attributes:
        flops: the budget.
        first: lowest expected loss of the first, nats per token.
        second: of the second.
        difference: second minus first; negative where the second is better.
        probability: that the second is better.
        measured: lowest loss measured in each table within a fifth of the budget; nan where there are no such runs.
        multiplier: compute with which the first reaches the second's loss, over the budget: above 1 the second is
            worth that many times its compute. Infinite where the first never reaches it in 4 decades.
        beyond: the budget over the largest compute that both tables hold.
    """

    flops: float
    first: Estimate
    second: Estimate
    difference: Estimate
    probability: float
    measured: tuple[float, float]
    multiplier: Estimate
    beyond: float


@dataclass(frozen=True)
class Crossing:
    """The budget at which the ranking turns.

    Attributes:
        flops: where the fitted curves cross, with the interval of the resamples that cross; nan when they do not.
        probability: share of resamples that cross between the smallest and ten times the largest compute.
        better_below: name of the one that is better below.
    """

    flops: Estimate
    probability: float
    better_below: str


@dataclass(frozen=True)
class Comparison(Displayed):
    """What two tables say about which is better; made by `compare`.

    Attributes:
        names: what the two are called.
        verdicts: one a budget.
        crossing: where the ranking turns.
        costs: C = k N^g D of each table.
        warnings: what makes them hard to compare.
        notes: assumptions.
        bootstraps: both fits and their resamples.
    """

    names: tuple[str, str]
    verdicts: tuple[Verdict, ...]
    crossing: Crossing
    costs: tuple[Compute, Compute]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    bootstraps: tuple[Bootstrap, Bootstrap] = field(repr=False)

    @property
    def answer(self) -> str:
        """One or two sentences, about the largest budget that both tables hold or the last asked for."""
        inside = [each for each in self.verdicts if each.beyond <= 1]
        told = inside[-1] if inside else self.verdicts[-1]
        said = self._sentence(told)
        if told is not self.verdicts[-1]:
            last = self.verdicts[-1]
            said += f" At {last.flops:.3g} FLOPs, {last.beyond:.3g} times beyond the runs, {self._clause(last)}."
        if np.isfinite(self.crossing.flops.value):
            said += (
                f" The ranking turns at {interval(self.crossing.flops, '{:.2g}'.format)} FLOPs: "
                f"{self.crossing.better_below} is better below."
            )
        return said

    def _clause(self, at: Verdict) -> str:
        better = self.names[1] if at.probability >= 0.5 else self.names[0]
        return f"{better} is better with probability {max(at.probability, 1 - at.probability):.2f}"

    def _sentence(self, at: Verdict) -> str:
        first, second = self.names
        sure = max(at.probability, 1 - at.probability) >= _SURE
        lead = f"At {at.flops:.3g} FLOPs {self._clause(at)}"
        if not sure:
            lead = f"At {at.flops:.3g} FLOPs the tables do not say which is better: {self._clause(at)}"
        return (
            f"{lead}; {second} differs by {interval(at.difference, signed)} nats from {first} and is worth "
            f"{interval(at.multiplier, _multiple)} times its compute."
        )

    def page(self) -> Page:
        """What is shown."""
        first, second = self.names
        apart = f"{second} - {first}"
        head = ("FLOPs", first, second, apart, f"p({second} better)", "compute multiplier", "measured", "beyond")
        rows = tuple(
            (
                f"{each.flops:.3g}",
                interval(each.first),
                interval(each.second),
                interval(each.difference, signed),
                f"{each.probability:.3f}",
                interval(each.multiplier, _multiple),
                signed(each.measured[1] - each.measured[0]) if np.isfinite(each.measured).all() else "–",
                f"{each.beyond:.3g}x" if each.beyond > 1 else "–",
            )
            for each in self.verdicts
        )
        title = (
            f"Lowest expected loss, nats per token; the multiplier is what {second} is worth in compute of {first}; "
            "measured: difference of the best runs"
        )
        sections = [Section(title, head, rows)]
        rows = []
        for name, boot, cost in zip(self.names, self.bootstraps, self.costs, strict=True):
            certificate = "passed" if boot.fit.certificate.passed else "failed"
            values = ", ".join(f"{k} {v:.4g}" for k, v in boot.fit.parameters.items())
            rows.append((name, str(len(boot.fit.residuals)), f"{boot.fit.sigma:.2%}", certificate, str(cost), values))
        head = ("table", "runs", "residuals", "certificate", "compute", "parameters")
        sections.append(Section(f"Fits of {self.bootstraps[0].fit.law.name}", head, tuple(rows)))
        return Page(self.answer, self.warnings, tuple(sections), self.notes)

    def to_dict(self) -> dict:
        """Everything that was found, as plain types for JSON."""
        return plain(
            {
                "answer": self.answer,
                "names": self.names,
                "law": self.bootstraps[0].fit.law.name,
                "budgets": [vars(each) for each in self.verdicts],
                "crossing": vars(self.crossing),
                "fits": {
                    name: boot.fit.to_dict() | {"compute": {"law": str(cost)} | cost.to_dict()}
                    for name, boot, cost in zip(self.names, self.bootstraps, self.costs, strict=True)
                },
                "warnings": self.warnings,
                "notes": self.notes,
            }
        )


def signed(value: float) -> str:
    """A difference of losses as it is shown."""
    return f"{value:+.4f}"


def _multiple(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "∞"
