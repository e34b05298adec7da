"""Every approach under every convention of N and C that a table has, side by side.

Exponents depend on what is counted: Kaplan's 0.73 against Hoffmann's 0.50 is mostly embeddings and head, left out or
not (Pearce and Song 2024, arXiv:2406.12907; Porian et al. 2024, arXiv:2406.19146).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling import runs
from scaling.approaches.disagreement import Disagreement, disagreements
from scaling.approaches.study import Approach, Study, study
from scaling.display import Displayed, Page, Section, count, interval, number, plain
from scaling.runs import Convention

SIZES = ("params", "params_nonembedding", "params_active")
COMPUTE = ("flops", "flops_6nd", "flops_kaplan")


def available(frame: pd.DataFrame) -> tuple[Convention, ...]:
    """The conventions a checked table can be read under, columns that hold the same values named once.

    Args:
        frame: as `runs.check` returns it.
    """

    def distinct(names):
        kept = []
        for name in names:
            usable = name in frame and np.isfinite(frame[name]).all() and (frame[name] > 0).all()
            if usable and not any(np.allclose(frame[name], frame[other], rtol=1e-9) for other in kept):
                kept.append(name)
        return kept

    return tuple(Convention(size, flops) for size in distinct(SIZES) for flops in distinct(COMPUTE))


@dataclass(frozen=True)
class Approaches(Displayed):
    """Hoffmann's approaches side by side.

    Attributes:
        studies: by convention, the table's own first.
        missing: conventions under which nothing could be fitted, and why.
        share: the optima shown are those at this many times the largest compute fitted.
        explained: under the first convention, why the approaches differ.
    """

    studies: dict[Convention, Study]
    missing: dict[Convention, str]
    share: float
    explained: tuple[Disagreement, ...]

    @property
    def first(self) -> Study:
        """Under the table's own convention."""
        return next(iter(self.studies.values()))

    def page(self) -> Page:
        """What is shown."""
        first = self.first
        a = {approach: value for approach, (value, _) in first.exponents().items()}
        answer = "N_opt grows as C^a with a = " + ", ".join(
            f"{interval(value, _two)} by approach {approach.value}" for approach, value in a.items()
        )
        return Page(
            answer=f"{answer}.",
            warnings=tuple(d.text for d in first.diagnostics if d.severity.name == "WARNING"),
            sections=tuple(self._section(*each) for each in self.studies.items()),
            notes=(
                *(f"Under {convention}: {why}" for convention, why in self.missing.items()),
                *(d.text for d in first.diagnostics if d.severity.name != "WARNING"),
            ),
        )

    def _section(self, convention: Convention, made: Study) -> Section:
        flops = self.share * float(made.view["flops"].max())
        optima, rows = made.optima(flops), []
        for approach, (a, b) in made.exponents().items():
            best = optima[approach]
            loss = interval(best.loss) if best.loss else "–"
            cells = (interval(a, _two), interval(b, _two), interval(best.params, count), interval(best.tokens, count))
            rows.append((approach.value, *cells, loss))
            if approach is Approach.ISOFLOP and made.isoflop.akima:
                trend = made.isoflop.akima
                cells = (interval(trend.params.slope, _two), interval(trend.tokens.slope, _two))
                cells += (interval(trend.params.at(flops), count), interval(trend.tokens.at(flops), count))
                rows.append(("   with Akima splines", *cells, "–"))
        rows += [(approach.value, *("–",) * 5) for approach in made.missing]
        title = f"{convention}; optima at {number(flops)} FLOPs; {made.cost}"
        return Section(title, ("approach", "a", "b", "N*", "D*", "loss"), tuple(rows))

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return plain(
            {
                "conventions": [made.to_dict() for made in self.studies.values()],
                "missing": {str(convention): why for convention, why in self.missing.items()},
                "explained": [
                    {**vars(each), "method": each.method, "data": each.data, "text": str(each)}
                    for each in self.explained
                ],
            }
        )


def under(found: Study, convention: Convention) -> Study:
    """The same table and settings, everything refitted with N and C counted another way.

    Along one run any count of compute is proportional to tokens, so each training curve moves by the ratio of its run;
    curves of other runs are left out.

    Raises:
        ValueError: nothing can be fitted under that convention.
    """
    if convention == found.convention:
        return found
    curves = None
    if found.curves is not None and {"run"} <= set(found.frame) & set(found.curves):
        here, there = found.view.set_index("run"), convention.view(found.frame).set_index("run")
        once = ~here.index.duplicated()
        moved = {
            "params": found.curves["run"].map(there["params"][once]),
            "flops": found.curves["flops"] * found.curves["run"].map((there["flops"] / here["flops"])[once]),
        }
        curves = found.curves.assign(**moved)[found.curves["run"].isin(here.index)]
    settings = {"objective": found.objective, "resamples": found.resamples, "seed": found.seed}
    return study(found.frame, curves, convention=convention, **settings)


def _two(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


def approaches(
    table: runs.Source,
    curves: pd.DataFrame | None = None,
    *,
    columns: dict[str, str] | None = None,
    where: str | None = None,
    share: float = 10.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Approaches:
    """Fit approaches 1, 2 and 3 to a table under every convention of N and C that it has.

    Args:
        table: a file, a frame or a checked table; held-out rows are left out.
        curves: training curves for approach 1, in the table's own convention; see `study` and `under`.
        columns: our name -> the table's.
        where: keeps rows.
        share: at how many times the largest compute fitted the optima are shown.
        resamples: of every bootstrap.
        seed: of every bootstrap.

    Raises:
        ValueError: the table is unusable, or no approach fits it under its first convention.
    """
    checked = runs.load(table, columns=columns, where=where)
    own, *others = available(checked.frame)
    studies = {own: study(checked.frame, curves, convention=own, resamples=resamples, seed=seed)}
    missing = {}
    for convention in others:
        try:
            studies[convention] = under(studies[own], convention)
        except ValueError as error:
            missing[convention] = str(error)
    return Approaches(studies, missing, share, disagreements(studies[own]))
