"""Sweeps: pure functions to lists of cells, and what carries a list of cells out.

Making a sweep touches no disk and no device, so it can be shown, costed and compared before anything runs. Carrying it
out never does a cell twice: a run is found by its identity, wherever in whatever sweep it was done.
"""

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.configuration import from_json, to_json
from experiments.data.prepared import Prepared, load
from experiments.launch.local import Job, Outcome, Status, run_all
from experiments.launch.worker import stop_requested
from experiments.runs import Cell, Run, RunFolder
from models.config import Architecture
from parallel.distributed import from_lead, is_lead, leave
from parallel.ending import AGAIN, status_of

FEWEST_STEPS = 50  # a run shorter than this says nothing about its size


@dataclass(frozen=True, kw_only=True)
class RateRule:
    """Peak learning rate: `coefficient * (params / 100_000) ** size_exponent * (steps / 1000) ** steps_exponent`.

    The defaults were tuned for batches of 512 tokens on the embedded corpus; experiments/EXPERIMENTS.md tells how.

    Attributes:
        coefficient: rate of a model of 100,000 parameters in a run of 1,000 steps.
        size_exponent: how it changes with size.
        steps_exponent: how it changes with the length of the run.
    """

    coefficient: float = 0.011
    size_exponent: float = -0.58
    steps_exponent: float = -0.22

    def peak(self, architecture: Architecture, steps: int) -> float:
        """The rate for an architecture and a number of steps, rounded to three digits."""
        params = architecture.cost(architecture.length).params
        rate = self.coefficient * (params / 1e5) ** self.size_exponent * (steps / 1000) ** self.steps_exponent
        return float(f"{rate:.3g}")


def at_budget(template: Run, architecture: Architecture, budget: float, rule: RateRule | None) -> Run:
    """The run that spends `budget` training FLOPs (exact count) on an architecture, to the nearest step.

    Args:
        template: everything but architecture, steps and (with a rule) peak rate.
        architecture: the model.
        budget: training FLOPs.
        rule: peak learning rate by size and steps; None for the template's.

    Raises:
        ValueError: if the budget is too small for the model.
    """
    flops_per_step = replace(template, architecture=architecture).cost.flops_per_token * template.batch_tokens
    steps = round(budget / flops_per_step)
    if steps < FEWEST_STEPS:
        raise ValueError(
            f"a budget of {budget:.2g} FLOPs buys {steps} steps of a model of {architecture.cost(1).params:,} "
            f"parameters, fewer than {FEWEST_STEPS}; take a larger budget (from {FEWEST_STEPS * flops_per_step:.2g}), "
            "a smaller model, or a smaller batch"
        )
    schedule = template.schedule if rule is None else replace(template.schedule, peak=rule.peak(architecture, steps))
    return replace(template, architecture=architecture, steps=steps, schedule=schedule)


def isoflop(
    name: str,
    template: Run,
    sizes: dict[float, Sequence[Architecture]],
    *,
    rule: RateRule | None = None,
    seeds: Sequence[int] = (0,),
) -> list[Cell]:
    """Runs of equal compute and different size, for each of several budgets (Hoffmann et al. 2022, section 3.2).

    Args:
        name: of the sweep.
        template: everything that the runs share.
        sizes: for each budget, in training FLOPs by exact count, the architectures to spend it on.
        rule: peak learning rate by size and steps.
        seeds: one run of every cell for each.
    """
    return [
        Cell(run=replace(at_budget(template, architecture, budget, rule), seed=seed), sweep=name, budget=budget)
        for budget, architectures in sizes.items()
        for architecture in architectures
        for seed in seeds
    ]


def total_flops(cells: Sequence[Cell]) -> float:
    """Training FLOPs of all cells."""
    return sum(cell.run.cost.flops(cell.run.tokens) for cell in cells)


def share_of(cells: Sequence[Cell], share: str) -> list[Cell]:
    """The cells that one of several machines trains; shares are about equally dear, and together they are all cells.

    Args:
        cells: the sweep, the same on every machine.
        share: as in "0/20", the first of twenty.

    Raises:
        ValueError: if there is no such share.
    """
    number, slash, count = share.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"a share is written as 0/20, the first of twenty, to 19/20, the last, not {share!r}")
    once = {cell.run.identity: cell for cell in cells}.values()
    dearest_first = sorted(once, key=lambda cell: -cell.run.cost.flops(cell.run.tokens))
    return dearest_first[int(number) :: int(count)]


def unfinished(cells: Sequence[Cell], root: Path) -> list[Cell]:
    """Cells still to do, the largest first; those that failed for good are not among them."""
    open_cells = {}
    for cell in cells:
        folder = RunFolder(root / cell.run.identity)
        if folder.result() is None and not folder.failed_for_good():
            open_cells[cell.run.identity] = cell
    dearest_first = sorted(open_cells.values(), key=lambda cell: -cell.run.cost.flops(cell.run.tokens))
    # As the lead sees it: of a folder in a bucket, no other process has a copy.
    by_identity = {cell.run.identity: cell for cell in cells}
    return [by_identity[identity] for identity in from_lead([cell.run.identity for cell in dearest_first])]


def execute(
    cells: Sequence[Cell],
    root: Path,
    prepared: Prepared,
    *,
    placement: dict[str, Any],
    workers: int,
    devices: int = 1,
    url: str = "",
    on_event: Callable[[Cell, dict[str, Any]], None] = lambda cell, event: None,
    on_outcome: Callable[[Cell, Outcome], None] = lambda cell, outcome: None,
) -> None:
    """Trains every cell that is not finished; a failure is recorded in the run's folder and stops nothing.

    Args:
        cells: what to train.
        root: folder of run folders.
        prepared: the rows that the runs name.
        placement: settings of `experiments.placement.Placement`, as JSON.
        workers: processes at a time; 0 for this process.
        devices: forced host devices of each worker.
        url: folder in a bucket that `root` is a working copy of.
        on_event: called with the progress of a cell.
        on_outcome: called when a cell has ended.

    Raises:
        OSError: if `root` cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder of runs {root} cannot be written: {error.strerror or error}") from error
    todo = unfinished(cells, root)
    jobs = [
        Job(
            entry="experiments.sweep:train_job",
            payload={
                "run": to_json(cell.run),
                "folder": str(root / cell.run.identity),
                "url": url and f"{url}/{cell.run.identity}",
                "prepared": str(prepared.folder),
                "placement": placement,
            },
        )
        for cell in todo
    ]

    def ended(index: int, outcome: Outcome) -> None:
        folder = RunFolder(root / todo[index].run.identity, jobs[index].payload["url"])
        if outcome.status is Status.FAILED and not folder.failed_for_good() and is_lead():
            with contextlib.suppress(OSError):  # a full disk: the reason is told below, and the cell is tried again
                folder.path.mkdir(parents=True, exist_ok=True)
                folder.fail(outcome.reason, for_good=False)
        on_outcome(todo[index], outcome)

    run_all(
        jobs,
        workers=workers,
        devices=devices,
        logs=root / "logs",
        on_event=lambda index, event: on_event(todo[index], event),
        on_outcome=ended,
    )


def train_job(payload: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """Trains one cell in a worker, or with other processes of a run; None if a worker was asked to stop."""
    import jax

    from experiments.placement import Placement
    from experiments.runs import RunFailed
    from experiments.train import Stopped, train

    run, folder = from_json(Run, payload["run"]), RunFolder(Path(payload["folder"]), payload["url"])
    placement = from_json(Placement, payload["placement"])
    try:
        return train(run, folder, load(payload["prepared"]), placement=placement, report=report, stop=stop_requested)
    except Stopped:
        if jax.process_count() > 1:  # whose sweep is to stop too
            raise KeyboardInterrupt from None
        return None
    except RunFailed as failure:
        if is_lead():
            folder.fail(str(failure), for_good=True)
        raise
    except Exception as error:
        if jax.process_count() > 1 and status_of(error) == AGAIN:  # no other run can be trained without the others
            traceback.print_exc()
            leave(AGAIN)
        raise
