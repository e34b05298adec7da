"""Why the approaches give different exponents: each run once more on losses that one law made.

Approach 3 fits one law to every run. Feeding that law's own losses, without noise, at the same runs, to the other
approaches shows what each of them would say if the law were the truth. What is left of the difference lies in the runs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scaling.approaches.frontier import frontier
from scaling.approaches.isoflop import isoflop

if TYPE_CHECKING:
    from scaling.approaches.study import Study

_FEW = 20  # resamples of a fit without noise, whose intervals are not used


@dataclass(frozen=True)
class Disagreement:
    """The exponent a of N_opt ~ C^a by approach 1 or 2 against that of approach 3.

    Attributes:
        approach: name of the approach.
        a: its exponent on the runs.
        law: the exponent of approach 3.
        on_law: its exponent on losses made by the law of approach 3 at the same runs.
    """

    approach: str
    a: float
    law: float
    on_law: float

    @property
    def method(self) -> float:
        """Part of the difference that the method makes even where the law is the truth."""
        return self.on_law - self.law

    @property
    def data(self) -> float:
        """The other part: the runs, by their noise or by not following the law."""
        return self.a - self.on_law

    def __str__(self) -> str:
        said = (
            f"Approach {self.approach} gives a = {self.a:.2f} and approach 3 gives {self.law:.2f}. On losses made by "
            f"approach 3's own law at the same runs the former gives {self.on_law:.2f}: {self.method:+.2f} of the "
            f"difference is the method, {self.data:+.2f} the runs"
        )
        if abs(self.a - self.law) < 0.02:
            return said + "; they agree."
        if abs(self.data) > 2 * abs(self.method):
            return said + ", which do not follow the law near their optima, or are noisy."
        if abs(self.method) > 2 * abs(self.data):
            return said + "; these sizes and budgets suit the method badly."
        return said + "."


def disagreements(study: "Study") -> tuple[Disagreement, ...]:
    """One for each of approaches 1 and 2 that could be fitted beside approach 3; none without approach 3."""
    if study.parametric is None:
        return ()
    fit, law, found = study.parametric.bootstrap.fit, study.parametric.a.value, []

    def made(table):
        return table.assign(loss=fit.predict({name: table[name].to_numpy(np.float64) for name in fit.law.columns}))

    for approach, (a, _) in study.exponents().items():
        if approach.name == "PARAMETRIC":
            continue
        try:
            if approach.name == "ISOFLOP":
                again = isoflop(made(study.view), resamples=_FEW)
            else:
                again = frontier(made(study.view), None if study.curves is None else made(study.curves), resamples=_FEW)
        except ValueError:  # the law's own losses show no minimum inside: nothing to compare
            continue
        found.append(Disagreement(approach.value, a.value, law, again.params.slope.value))
    return tuple(found)
