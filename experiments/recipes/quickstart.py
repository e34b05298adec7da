"""`scaling quickstart`.

The main job on text that every machine has: an IsoFLOP sweep over the Python standard library's own source, the law
fitted to it, and a run of four times the largest budget predicted before it is trained.

Expected: predicted and measured held-out loss agree within the printed interval. Cost: about 6 minutes on two cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.commands.options import prepare_with_progress
from experiments.configuration import to_json
from experiments.data.packed import DataConfig
from experiments.data.prepared import Prepared
from experiments.data.tokenizer import TokenizerConfig
from experiments.objectives import Causal
from experiments.optimizer import Schedule, Shape
from experiments.results import cores, fit_tables, predict_tables, publish, write_tables
from experiments.runs import Cell, Run, RunFolder
from experiments.show import dry_run_table, execute_with_progress
from experiments.sweep import RateRule, at_budget, isoflop
from models import zoo
from models.config import Architecture
from scaling.approaches.held_out import HeldOut
from scaling.approaches.study import Study
from scaling.estimate import Estimate

DATA = DataConfig(tokenizer=TokenizerConfig(vocab=512), length=128)
BATCH = 4  # rows: small batches, because the larger models of a budget would otherwise see too few steps

# Shapes (width, depth) in order of size. Two blocks while width / depth is below 32, so that within a budget only the
# width changes and the parabola is about size, not about shape.
SHAPES = ((16, 2), (24, 2), (32, 2), (40, 2), (48, 2), (56, 2), (64, 3), (80, 3), (96, 4), (112, 4))

# Budgets in training FLOPs, and the first and last shape to spend each on: the optimum lies between.
BUDGETS = {5e10: (0, 4), 1e11: (0, 4), 2e11: (1, 5), 4e11: (1, 5)}
HELD_OUT_FACTOR = 4  # times the largest budget
KAPLAN = {"kaplan-n": "Kaplan's L(N)", "kaplan-d": "Kaplan's L(D)", "kaplan-c": "Kaplan's L(C)"}
RATE = RateRule()  # tuned on these budgets, see experiments/EXPERIMENTS.md


def architecture(shape: tuple[int, int]) -> Architecture:
    """The decoder of a width and depth."""
    width, depth = shape
    vocab = DATA.tokenizer.vocab
    return zoo.make("decoder", width=width, depth=depth, heads=width // 8, vocab=vocab, length=DATA.length)


@dataclass(frozen=True)
class Quickstart:
    """The recipe, with where it writes and what it may use."""

    output: Path
    workers: int = 0
    seed: int = 0
    budgets: Mapping[float, tuple[int, int]] = field(default_factory=lambda: BUDGETS)
    evaluation_rows: int = 1024

    def template(self, prepared: Prepared) -> Run:
        """What all runs share."""
        return Run(
            architecture=architecture(SHAPES[0]),
            data=DATA,
            rows=prepared.fingerprint,
            schedule=Schedule(shape=Shape.LINEAR, warmup=0.05, final=0.0),
            batch=BATCH,
            steps=1,
            objective=Causal(bos=prepared.tokenizer.bos),
            seed=self.seed,
            evaluation_rows=self.evaluation_rows,
        )

    def sweep(self, prepared: Prepared) -> list[Cell]:
        """The runs that the law is fitted to."""
        sizes = {
            budget: [architecture(shape) for shape in SHAPES[first : last + 1]]
            for budget, (first, last) in self.budgets.items()
        }
        return isoflop("quickstart", self.template(prepared), sizes, rule=RATE)

    def held_out(self, prepared: Prepared, study: Study) -> Cell:
        """The run that the law predicts: the size it says is best at a budget that it has not seen."""
        budget = HELD_OUT_FACTOR * max(self.budgets)
        wanted = study.optimum(budget).params.value
        sizes = [architecture(shape) for shape in SHAPES]
        nearest = min(sizes, key=lambda size: abs(np.log(size.cost(DATA.length).params / wanted)))
        run = at_budget(self.template(prepared), nearest, budget, RATE)
        return Cell(run=run, sweep="quickstart", budget=budget, role="held-out")

    def run(self, console: Console) -> int:
        """Everything from text to report; what is there already is not done again."""
        root = self.output / "cells"
        console.print("1/5  corpus: the Python standard library's own source", highlight=False)
        prepared = prepare_with_progress(DATA, self.output.parent / "data", console)
        console.print(*_corpus(prepared), sep="\n", highlight=False)

        cells = self.sweep(prepared)
        console.print(f"2/5  sweep: {len(cells)} runs at {len(self.budgets)} compute budgets", highlight=False)
        self._execute(cells, root, prepared, console, what="sweep", workers=self.workers or cores(), devices=1)
        write_tables(cells, root, self.output)

        console.print("3/5  fit: three approaches, with intervals", highlight=False)
        study = fit_tables(self.output)
        console.print(*_laws(study), sep="\n", highlight=False)

        last = self.held_out(prepared, study)
        cost = last.run.cost
        predicted = study.predict(cost.params, last.run.tokens)
        console.print(
            f"4/5  held-out run: {cost.params:,} parameters, {last.run.tokens:,} tokens, {last.budget:.2e} FLOPs\n"
            f"     predicted loss {_interval(predicted, 3)}",
            highlight=False,
        )
        devices = next(n for n in range(min(BATCH, cores()), 0, -1) if BATCH % n == 0)
        self._execute([last], root, prepared, console, what="held-out run", workers=1, devices=devices)
        write_tables([*cells, last], root, self.output)

        console.print("5/5  report", highlight=False)
        held = predict_tables(study, self.output)
        publish(study, held, self.output, title="Quickstart: how a small decoder scales", command="scaling quickstart")
        console.print(*_verdict(held, RunFolder(root / last.run.identity), self.output), sep="\n", highlight=False)
        return 0

    def _execute(
        self, cells: Sequence[Cell], root: Path, prepared: Prepared, console: Console, *, what: str, workers: int,
        devices: int,
    ) -> None:  # fmt: skip
        from experiments.placement import Placement

        execute_with_progress(
            cells, root, prepared, console=console, what=f"     {what}", workers=workers, devices=devices,
            placement=to_json(replace(Placement(), checkpoint_seconds=10.0)),
        )  # fmt: skip

    def dry_run(self, console: Console) -> int:
        """Shows the runs; the corpus is prepared, because its fingerprint is part of what a run is."""
        prepared = prepare_with_progress(DATA, self.output.parent / "data", console)
        runs = [cell.run for cell in self.sweep(prepared)]
        console.print(dry_run_table(runs, workers=self.workers or cores()))
        console.print(
            f"and one held-out run of {HELD_OUT_FACTOR * max(self.budgets):.2e} FLOPs at the size the law predicts"
        )
        return 0


def _corpus(prepared: Prepared) -> list[str]:
    train, held, metadata = prepared.metadata.train, prepared.metadata.held_out, prepared.metadata
    return [
        f"     {train.documents + held.documents} files, {(train.bytes + held.bytes) / 1e6:.1f} MB, "
        f"sha256 {metadata.contents_sha256[:16]}",
        f"     {train.tokens:,} training tokens of a vocabulary of {metadata.vocab}, {held.rows:,} held-out rows",
    ]


def _laws(study: Study) -> list[str]:
    lines = ["     N_opt ~ C^a, D_opt ~ C^b, with 95 % intervals"]
    for approach, (a, b) in study.exponents().items():
        lines.append(f"     {approach.value:<21} a {_interval(a, 2)}   b {_interval(b, 2)}")
    for law in study.kaplan.values():
        lines.append(f"     {KAPLAN[law.law.name]:<21} exponent {_interval(law.alpha, 3)}")
    return lines


def _interval(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _verdict(held: tuple[HeldOut, ...], folder: RunFolder, output: Path) -> list[str]:
    if not held:
        return [f"     the held-out run failed: {folder.failure()}", f"     {output / 'report.html'}"]
    run = held[0]
    inside = "inside" if run.inside else "outside"
    return [
        "",
        f"predicted loss  {run.predicted.value:.4f}  95 % interval {run.predicted.low:.4f} to {run.predicted.high:.4f}",
        f"measured loss   {run.loss:.4f}  {inside} the interval, {100 * run.error:+.1f} %",
        f"report          {output / 'report.html'}",
    ]
