"""What a plan says: how to spend each budget, and how it is shown."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from scaling.certainty.bootstrap import Bootstrap
from scaling.decisions.constraints import Setting
from scaling.decisions.design import NextRuns
from scaling.decisions.deviation import Deviation
from scaling.display import Displayed, Page, Section, count, interval, number, plain, share
from scaling.estimate import Estimate
from scaling.fitting.fit import Fit


@dataclass(frozen=True)
class Allocation:
    """How to spend one budget.

    Attributes:
        flops: the budget.
        params: N*.
        tokens: D*.
        tokens_per_param: D*/N*.
        loss: lowest expected loss, nats per token.
        measured: where the loss of one run there should be measured.
        training_flops: of the budget, what training costs; the rest serves tokens.
        epochs: D* over unique tokens, where those are limited; otherwise None.
        near: sizes between which the planned loss costs at most `Plan.tolerance` more compute; None when N is not free.
        deviations: what other sizes cost.
        beyond: the budget over the compute of the largest run fitted.
        distance: in words.
    """

    flops: float
    params: Estimate
    tokens: Estimate
    tokens_per_param: Estimate
    loss: Estimate
    measured: Estimate
    training_flops: float
    epochs: float | None
    near: tuple[float, float] | None
    deviations: tuple[Deviation, ...]
    beyond: float
    distance: str


@dataclass(frozen=True)
class Plan(Displayed):
    """What a table of runs says about budgets; made by `plan`.

    Attributes:
        allocations: one a budget.
        next_runs: the runs to buy before, where asked for.
        setting: law, cost of a token, constraints.
        tolerance: extra compute that counts as near the optimum.
        warnings: what to know before acting on it.
        notes: assumptions.
        bootstrap: the fit and its resamples.
    """

    allocations: tuple[Allocation, ...]
    next_runs: NextRuns | None
    setting: Setting
    tolerance: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    bootstrap: Bootstrap = field(repr=False)

    @property
    def fit(self) -> Fit:
        """The law the plan rests on."""
        return self.bootstrap.fit

    def iso_loss(self, loss: float, params: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """Tokens with which models of some sizes reach a loss; infinite where they cannot.

        Args:
            loss: nats per token.
            params: sizes.
        """
        return self.setting.tokens_needed(self.fit.parameters, np.asarray(loss), np.asarray(params, np.float64))

    @property
    def answer(self) -> str:
        """One or two sentences."""
        each = self.allocations[-1]
        said = (
            f"At {each.flops:.3g} FLOPs: N* = {interval(each.params, count)}, D* = {interval(each.tokens, count)}, "
            f"{number(each.tokens_per_param.value)} tokens a parameter; expected loss {interval(each.loss)}."
        )
        if each.near is not None:
            low, high = each.near
            said += (
                f" Any N from {count(low)} to {count(high)} reaches it with at most {self.tolerance:.0%} more compute."
            )
        if self.next_runs is not None:
            said += f" {self.next_runs.answer}"
        return said

    def page(self) -> Page:
        """What is shown."""
        head = ("FLOPs", "N*", "D*", "D*/N*", "expected loss", "one run measures")
        repeated = any(each.epochs is not None for each in self.allocations)
        served = self.setting.constraints.served_tokens is not None
        head += (("epochs",) if repeated else ()) + (("of it training",) if served else ())
        rows = []
        for each in self.allocations:
            row = [f"{each.flops:.3g}", interval(each.params, count), interval(each.tokens, count)]
            row += [interval(each.tokens_per_param), interval(each.loss), _range(each.measured)]
            row += [number(each.epochs)] if repeated else []
            row += [share(each.training_flops / each.flops)] if served else []
            rows.append(tuple(row))
        sections = [Section("Optimum, with 95 % intervals", head, tuple(rows))]
        last = self.allocations[-1]
        if last.deviations:
            title = (
                f"Other sizes at {last.flops:.3g} FLOPs: what they lose, and the tokens and budgets with which they "
                "would reach the lowest loss too"
            )
            head = ("N", "", "D", "D/N", "loss above lowest", "D to reach it", "budgets to reach it")
            rows = tuple(
                (
                    count(each.params),
                    _times(each.factor),
                    count(each.tokens),
                    number(each.tokens / each.params),
                    interval(each.penalty, "{:.4f}".format),
                    count(each.tokens_needed) if np.isfinite(each.tokens_needed) else "out of reach",
                    interval(each.extra, _budgets),
                )
                for each in last.deviations
            )
            sections.append(Section(title, head, rows))
        if self.next_runs is not None:
            sections.append(self.next_runs.section())
        return Page(self.answer, self.warnings, tuple(sections), self.notes)

    def to_dict(self) -> dict:
        """Everything that was found, as plain types for JSON."""

        def allocation(each: Allocation) -> dict:
            return vars(each) | {"deviations": [vars(other) for other in each.deviations]}

        fitted = self.fit.to_dict()
        return plain(
            {
                "answer": self.answer,
                "law": self.fit.law.name,
                "columns": fitted["columns"],
                "parameters": self.fit.parameters,
                "intervals": {
                    name: self.bootstrap.interval(name).to_dict() | {"method": self.bootstrap.method}
                    for name in self.fit.law.names
                },
                "objective": fitted["objective"],
                "certificate": fitted["certificate"],
                "compute": {"law": str(self.setting.cost)} | self.setting.cost.to_dict(),
                "constraints": vars(self.setting.constraints),
                "fixed": self.setting.columns,
                "allocations": [allocation(each) for each in self.allocations],
                "tolerance": self.tolerance,
                "next_runs": self.next_runs.to_dict() if self.next_runs else None,
                "warnings": self.warnings,
                "notes": self.notes,
            }
        )


def _range(estimate: Estimate) -> str:
    return f"{number(estimate.low)} to {number(estimate.high)}"


def _budgets(extra: float) -> str:
    return "∞" if np.isinf(extra) else f"{1 + extra:.2f}" if extra < 9 else f"{1 + extra:.3g}"


def _times(factor: float) -> str:
    return "N*" if factor == 1 else f"{factor:g} N*" if factor > 1 else f"N*/{1 / factor:g}"
