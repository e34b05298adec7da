"""`scaling sweep`: a ladder of sizes at several compute budgets."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from experiments.commands.options import FamilyOptions, TextOptions, answering, objective_for, reading
from experiments.objectives.named import Name
from experiments.optimizer import AdamW, Schedule, Shape
from experiments.placement import Placement
from experiments.sweep import RateRule


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train an IsoFLOP sweep: several sizes at each of several compute budgets, then fit the law and write a report.

    The same command again trains only what is missing. A failed run is recorded with its reason and stops nothing.

        scaling sweep --budgets 1e11 2e11 4e11 --sizes 5                     # on the embedded corpus
        scaling sweep --data.text books.txt --model.family llama --budgets 1e12 1e13 --tokens-per-param 5 80
        scaling sweep ... --dry-run                                          # the runs, and about how long they take
        scaling sweep ... --dry-run --topology v5p:4x4x4                     # what they would cost on 64 chips
    """

    budgets: tuple[float, ...]
    """Training FLOPs (exact count) of a run, one or several budgets."""
    sizes: int = 5
    """Sizes at each budget."""
    tokens_per_param: tuple[float, float] = (2.0, 200.0)
    """Fewest and most tokens per parameter of a run, which sets the largest and the smallest size of a budget."""
    data: TextOptions = field(default_factory=TextOptions)
    model: FamilyOptions = field(default_factory=FamilyOptions)
    objective: tyro.conf.EnumChoicesFromValues[Name] | None = None
    """What is predicted; by default causal for a decoder, masked for an encoder, span-corruption for both."""
    rate: RateRule = field(default_factory=RateRule)
    """Peak learning rate by size and steps."""
    schedule: Schedule = field(default_factory=lambda: Schedule(shape=Shape.LINEAR, final=0.0))
    """Learning rate over a run; its peak is set by --rate."""
    optimizer: AdamW = field(default_factory=AdamW)
    batch: int = 8
    """Rows per step."""
    seeds: tuple[int, ...] = (0,)
    """One run of every cell for each seed."""
    evaluation_rows: int | None = None
    """Held-out rows to evaluate on; all by default."""
    placement: Placement = field(default_factory=Placement)
    workers: int | None = None
    """Training processes at a time; by default one a core on CPU, and this process on accelerators."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER|URL")] = "runs/sweep"
    """Folder for everything it makes, or gs://bucket/folder (extra `gcs`)."""
    share: str = ""
    """Train only this share of the runs, as 0/20 (the first of twenty), and fit nothing: for machines of one folder."""
    topology: str = ""
    """Slice to train on, as v5p:4x4x4: first says what each run costs there, if it fits; each size gets its layout."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the runs and what they would cost, and train nothing."""

    def __call__(self) -> int:
        """Trains, fits, reports."""
        from rich.console import Console

        from experiments.buckets import Mirror, Place
        from experiments.commands.options import prepare_with_progress
        from experiments.configuration import to_json
        from experiments.launch.environment import accelerator_present
        from experiments.launch.lock import exclusive
        from experiments.results import cores
        from experiments.runs import record_rows
        from experiments.show import dry_run_table, execute_with_progress
        from experiments.sweep import share_of
        from models import zoo
        from parallel import distributed

        together = distributed.start()
        lead = distributed.is_lead()
        console = Console(quiet=not lead)
        home = Place.of(self.output)
        zoo.family(self.model.family)
        with distributed.lead_first("rows"):
            prepared = prepare_with_progress(self.data.config(), home.folder.parent / "data", console)
        cells = self.cells(prepared)
        if self.share:
            cells = share_of(cells, self.share)
        workers = self.workers if self.workers is not None else 0 if accelerator_present() else cores()
        workers = 0 if together else workers  # many machines train one run at a time, all of them
        groups, devices = {self.placement: cells}, 1
        if self.topology:
            groups = self._placed(cells, console)
        if self.dry_run:
            console.print(dry_run_table([cell.run for cell in cells], workers=None if self.topology else workers))
            return 0
        if self.topology:
            workers, devices = self._on_topology(workers)
        root = home / "cells"
        own = home.folder / "shares" / self.share.replace("/", "-of-") if self.share else home.folder
        mirror = Mirror(home) if home.url and lead else None
        with exclusive(own) if lead else nullcontext():
            if mirror:
                mirror.pull()
            with distributed.lead_first("the rows of the sweep"):
                if lead:
                    record_rows(home.folder, prepared)
                if mirror:
                    mirror.push()
            for placement, group in groups.items():
                execute_with_progress(
                    group, root.folder, prepared, console=console, what=home.folder.name, workers=workers,
                    devices=devices, placement=to_json(placement), url=root.url,
                )  # fmt: skip
            if self.share:
                return 0
            with distributed.lead_first("report"):
                status = self._publish(cells, root.folder, home, console) if lead else 0
                if mirror:
                    mirror.push()
                return status

    def _placed(self, cells, console) -> dict[Placement, list]:
        """The cells by the layout that suits each on the topology, after a table of what they cost.

        Raises:
            ValueError: if a run does not fit and this is no dry run.
        """
        from experiments.pricing import check_fit, price_table, prices
        from parallel.topology import Topology

        with console.status("looking for layouts"):
            found = prices([cell.run for cell in cells], Topology.parse(self.topology), self.placement)
        console.print(price_table(found))
        if not self.dry_run:
            check_fit(found)
        groups = {}
        for cell, price in zip(cells, found, strict=True):
            groups.setdefault(price.candidate.layout, []).append(cell)
        return groups

    def _on_topology(self, workers: int) -> tuple[int, int]:
        """Training processes at a time, and devices of each, where runs are laid out for a topology.

        Raises:
            ValueError: if the devices here are not those of the topology.
        """
        import jax

        from experiments.results import cores
        from parallel.topology import Topology

        topology = Topology.parse(self.topology)
        if topology.platform == "cpu" and workers:
            return self.workers or max(1, cores() // topology.chips), topology.chips
        if jax.default_backend() != topology.platform or jax.device_count() != topology.chips:
            raise ValueError(
                f"topology {topology} has {topology.chips} {topology.platform.upper()} devices, and here are "
                f"{jax.device_count()} of {jax.default_backend().upper()}; --dry-run says what it would cost there"
            )
        return workers, 1

    def _publish(self, cells, root, home, console) -> int:
        """Writes the table, the law and the report."""
        from experiments.results import fit_tables, predict_tables, publish, write_tables

        write_tables(cells, root, home.folder)
        console.print(f"table   {home / 'runs.csv'}", highlight=False)
        try:
            study = fit_tables(home.folder)
        except ValueError as reason:
            console.print(f"no law: {reason}", highlight=False)
            return 1
        held_out = predict_tables(study, home.folder)
        publish(study, held_out, home.folder, title=f"Sweep {home.folder.name}", command="scaling sweep")
        console.print(f"report  {home / 'report.html'}", highlight=False)
        return 0

    def cells(self, prepared):
        """The cells that the options describe.

        Raises:
            ValueError: if a budget is too small for the smallest model, or the sizes do not fit between the bounds.
        """
        from experiments.runs import Run
        from experiments.sweep import isoflop
        from models import ladder

        if not all(0 < budget < math.inf for budget in self.budgets):
            raise ValueError(f"--budgets {' '.join(f'{each:g}' for each in self.budgets)}: FLOPs are more than 0")
        least, most = self.tokens_per_param
        if not 0 < least < most:
            raise ValueError(f"--tokens-per-param {least:g} {most:g}: give the fewest and the most")
        common = reading(prepared, self.objective) | self.model.settings()
        sizes = {}
        for budget in sorted(self.budgets):
            # C is about 6 N D, so D / N = r is met at N = sqrt(C / 6 r).
            bounds = ((budget / (6 * ratio)) ** 0.5 for ratio in (most, least))
            try:
                rungs = ladder.ladder(self.model.family, *bounds, self.sizes, **common)
                sizes[budget] = [answering(rung, prepared) for rung in rungs]
            except ValueError as reason:
                raise ValueError(f"budget {budget:.2g}, {least:g} to {most:g} tokens per parameter: {reason}") from None
        architecture = next(iter(sizes.values()))[0]
        template = Run(
            architecture=architecture,
            data=self.data.config(),
            rows=prepared.fingerprint,
            schedule=self.schedule,
            batch=self.batch,
            steps=1,
            objective=objective_for(self.objective, architecture, prepared),
            optimizer=self.optimizer,
            evaluation_rows=self.evaluation_rows,
        )
        return isoflop(self.output.rstrip("/").rpartition("/")[2], template, sizes, rule=self.rate, seeds=self.seeds)
