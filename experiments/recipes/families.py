"""`python -m experiments.recipes.families`.

The same question to three families: BERT by masked words, GPT by the next word, T5 by spans cut out, each in a small
IsoFLOP sweep on the same rows of the Python standard library's source, with the same budgets of exact training FLOPs.

Expected: three fitted laws in one figure, `families.png`, and in `note.txt` what of them may be compared. Cost: about
8 minutes on two cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from experiments.commands.options import prepare_with_progress
from experiments.configuration import to_json
from experiments.data.packed import DataConfig
from experiments.data.prepared import Prepared
from experiments.data.tokenizer import TokenizerConfig
from experiments.objectives import Sides
from experiments.objectives.named import USUAL, named
from experiments.optimizer import Schedule, Shape
from experiments.results import cores, fit_tables, write_tables
from experiments.runs import Cell, Run, write_text
from experiments.show import dry_run_table, execute_with_progress
from experiments.sweep import RateRule, isoflop
from models import zoo
from models.config import Architecture
from scaling.approaches.study import Approach, Study
from scaling.figures import Format, render
from scaling.figures.axes import around, blank, log_axis, plain, power_of_ten, short
from scaling.figures.theme import LIGHT, Theme

# The reserved ids serve the mask and the sentinels; all three families have them, so that all read the same rows.
DATA = DataConfig(tokenizer=TokenizerConfig(vocab=512, extra=16), length=128)
BATCH = 4  # rows
BUDGETS = (5e10, 1e11, 2e11)  # training FLOPs; with less, BERT has learnt little but how frequent each word is
WIDTHS = (8, 16, 24, 40)
DEPTHS = {"bert": 2, "gpt2": 2, "t5": 1}  # T5's on either side: two blocks each

# Peak rates, as shares of those tuned for the plain decoder; tuned at 4e10 and 8e10 FLOPs, see EXPERIMENTS.md. At the
# decoder's own, BERT learns nothing from its context.
RATES = {"bert": 0.4, "gpt2": 1.0, "t5": 0.6}

NOTE = """What may be compared, and what not.

Each family was trained on the same rows of text, with the same budgets of exact training FLOPs, and each law is fitted
to the held-out losses of one objective. These may be compared: how the best size grows with compute (exponent a), and
how much longer a model of given size is worth training; mind the intervals, which are wide after a few small runs.

Losses may not be: a masked word with both of its sides to look at, a next word, and the words of a span cut out are
different questions, and their nats per prediction differ even for one and the same knowledge of the text. That is why
there are three tables and three axes. A table of several objectives is refused (`scaling.runs.check`).

Parameters are counted alike (all of them), but work is not: T5's tokens are those of inputs and targets, and each meets
the parameters of its own side only. Learning rates follow one rule with a factor for each family, coarsely tuned.
"""


def architecture(family: str, width: int) -> Architecture:
    """The model of a family at a width."""
    vocab = DATA.tokenizer.vocab + DATA.tokenizer.extra
    sizes = dict(width=width, depth=DEPTHS[family], heads=width // 8, vocab=vocab, length=DATA.length)
    # Without the fixed deviation of their large models, which is too small for widths like these.
    return zoo.make(family, **sizes, std=None)


@dataclass(frozen=True, kw_only=True)
class Families:
    """The recipe, with where it writes and what it may use."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/families")
    """Folder for everything it makes."""
    workers: int = 0
    """Training processes at a time; one a core by default."""
    seed: int = 0
    """Of initialisation and order."""
    budgets: tuple[float, ...] = BUDGETS
    """Training FLOPs, exact count."""
    evaluation_rows: int = 1024
    """Held-out rows that losses are over."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the runs and what they would cost, and train nothing."""

    def sweep(self, family: str, prepared: Prepared) -> list[Cell]:
        """The runs of a family, asked what such a model is usually asked."""
        sizes = [architecture(family, width) for width in WIDTHS]
        template = Run(
            architecture=sizes[0],
            data=DATA,
            rows=prepared.fingerprint,
            schedule=Schedule(shape=Shape.LINEAR, warmup=0.05, final=0.0),
            batch=BATCH,
            steps=1,
            objective=named(USUAL[Sides.of(sizes[0])], prepared.tokenizer),
            seed=self.seed,
            evaluation_rows=self.evaluation_rows,
        )
        rule = RateRule()
        rule = replace(rule, coefficient=RATES[family] * rule.coefficient)
        return isoflop(f"families-{family}", template, dict.fromkeys(self.budgets, sizes), rule=rule)

    def __call__(self, console: Console) -> int:
        """Everything from text to figure; what is there already is not done again."""
        from experiments.placement import Placement

        prepared = prepare_with_progress(DATA, self.output.parent / "data", console)
        sweeps = {family: self.sweep(family, prepared) for family in DEPTHS}
        cells = [cell for sweep in sweeps.values() for cell in sweep]
        if self.dry_run:
            console.print(dry_run_table([cell.run for cell in cells], workers=self.workers or cores()))
            return 0
        root = self.output / "cells"
        execute_with_progress(
            cells, root, prepared, console=console, what=f"{len(sweeps)} families", workers=self.workers or cores(),
            placement=to_json(Placement(checkpoint_seconds=10.0)),
        )  # fmt: skip
        studies = {family: fitted(sweep, root, self.output / family) for family, sweep in sweeps.items()}
        figure = drawn(studies)
        for kind in (Format.PNG, Format.SVG):
            (self.output / f"families.{kind.value}").write_bytes(render(figure, kind))
        lines = [said(family, study) for family, study in studies.items()]
        write_text(self.output / "note.txt", "\n".join([*lines, "", NOTE]))
        console.print(*lines, f"{self.output / 'families.png'}, note.txt", sep="\n", highlight=False)
        return 0


def fitted(cells: Sequence[Cell], root: Path, folder: Path) -> Study:
    """The laws of one family, from a table of its own.

    Raises:
        ValueError: if too few runs finished for any law.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(cells, root, folder)
    return fit_tables(folder)


def objective_of(study: Study) -> str:
    """What the losses of a study are of."""
    return str(study.view["objective"].iloc[0])


def said(family: str, study: Study) -> str:
    """A line of what was found."""
    exponents = (
        f"{approach.value}: a {a.value:.2f} ({a.low:.2f} to {a.high:.2f})"
        for approach, (a, _) in study.exponents().items()
        if approach is not Approach.FRONTIER
    )
    return f"{family:<5} {objective_of(study):<32} {len(study.view)} runs; N_opt ~ C^a, {', '.join(exponents)}"


def drawn(studies: Mapping[str, Study], *, theme: Theme = LIGHT) -> Figure:
    """A panel for each family: losses against size by budget, and the fitted law at each budget."""
    with mpl.rc_context(theme.settings):
        figure, panels = blank(4.0 * len(studies), 4.4, columns=len(studies))
        for axes, (family, study) in zip(np.atleast_1d(panels), studies.items(), strict=True):
            _panel(axes, family, study, theme)
        caution = "Losses of different objectives cannot be compared: each panel has its own axis."
        figure.supxlabel(caution, x=0.01, ha="left", fontsize=8.5, color=theme.soft)
    return figure


def _panel(axes: Axes, family: str, study: Study, theme: Theme) -> None:
    view = study.view
    for budget, colour in zip(sorted(view["budget"].unique()), theme.approaches * len(view), strict=False):
        cell = view[view["budget"] == budget].sort_values("params")
        axes.plot(cell["params"], cell["loss"], "o", color=colour, label=f"{power_of_ten(budget)} FLOPs")
        if study.parametric:
            sizes = np.geomspace(cell["params"].min() / 1.1, cell["params"].max() * 1.1, 60)
            tokens = study.cost.tokens(cell["flops"].mean(), sizes)
            law = study.parametric.bootstrap.fit.predict({"params": sizes, "tokens": tokens})
            axes.plot(sizes, law, color=colour, linewidth=1.3)
    log_axis(axes, "x", around(view["params"]), short, 4)
    log_axis(axes, "y", around(view["loss"]), plain)
    axes.set_xlabel("parameters N")
    axes.set_ylabel("held-out loss, nats per prediction")
    axes.set_title(f"{family}: {objective_of(study)}")
    axes.legend(loc="best")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the recipe from the command line."""
    from experiments.launch.lock import exclusive

    recipe = tyro.cli(Families, prog="families", description=__doc__, args=arguments)
    with exclusive(recipe.output):
        return recipe(Console())


if __name__ == "__main__":
    raise SystemExit(main())
