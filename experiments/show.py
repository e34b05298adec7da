"""What a person sees while runs go on: progress, what runs would cost, what came out."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from experiments.data.prepared import Prepared
from experiments.launch.local import Outcome, Status
from experiments.runs import Cell, Run, RunFolder
from experiments.sweep import execute, total_flops, unfinished

# Training FLOP/s of one process of a small model on one core, for estimates of time; see tests/benchmarks.
CPU_FLOPS_PER_WORKER = 1.2e10


def short(value: float) -> str:
    """A count with three digits and a suffix: 12,345,678 is 12.3M."""
    if value == 0:
        return "0"
    power = min(4, max(0, int(math.log10(abs(value)) // 3)))
    return f"{value / 1000**power:.3g}" + ["", "k", "M", "B", "T"][power] if value < 1e15 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Seconds as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(console: Console) -> Progress:
    """A bar a task, with a `note` field for loss and speed."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        refresh_per_second=4,
    )


def dry_run_table(runs: Sequence[Run], *, workers: int | None) -> Table:
    """Runs, what they cost, and about how long they take on this machine's CPU unless `workers` is None."""
    table = Table(
        title=f"{len(runs)} runs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("run", "shape", "params", "body", "tokens", "steps", "rate", "FLOPs"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for run in runs:
        row = run.columns()
        table.add_row(
            row["run"],
            f"{row['width']}x{row['layers']}",
            short(row["params"]),
            short(row["params_nonembedding"]),
            short(row["tokens"]),
            f"{row['steps']:,}",
            f"{row['learning_rate']:.2g}",
            f"{row['flops']:.2e}",
        )
    flops = sum(run.columns()["flops"] for run in runs)
    table.caption = f"{flops:.2e} FLOPs in all"
    if workers is not None:
        seconds = flops / (CPU_FLOPS_PER_WORKER * max(1, min(workers, len(runs))))
        table.caption += (
            f"; about {duration(seconds)} on {workers} CPU core{'s' * (workers > 1)} if the models are small"
        )
    return table


def result_lines(run: Run, folder: RunFolder) -> list[str]:
    """The result of a finished run, a line a fact."""
    row = run.columns() | (folder.result() or {})
    named = {"bits_per_byte": "bits per byte", "accuracy": "accuracy"}
    more = [f"{words:<16}{row[name]:.4f}" for name, words in named.items() if name in row]
    return [
        f"held-out loss   {row['loss']:.4f} ± {row['loss_se']:.4f} nats per prediction ({row['objective']})",
        *more,
        f"params          {row['params']:,} ({row['params_nonembedding']:,} non-embedding)",
        f"tokens          {row['tokens']:,} ({row['unique_tokens']:,} unique)",
        f"FLOPs           {row['flops']:.3e}",
        f"folder          {folder.url or folder.path}",
    ]


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came; a second one is not held back.

    Where several processes train one run, Ctrl-C becomes SIGTERM, of which `parallel.distributed` tells all of them.
    """
    pressed = []

    def press(*_):
        pressed.append(True)
        for number, handler in before.items():
            signal.signal(number, handler)

    if jax.process_count() > 1:
        before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))}
    else:
        before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def execute_with_progress(
    cells: Sequence[Cell],
    root: Path,
    prepared: Prepared,
    *,
    console: Console,
    what: str,
    placement: dict[str, Any],
    workers: int,
    devices: int = 1,
    url: str = "",
) -> None:
    """`sweep.execute`, with a bar for the whole (by FLOPs) and one for each run that is under way."""
    todo = unfinished(cells, root)
    if reused := len(cells) - len(todo):
        console.print(f"{what}: {reused} of {len(cells)} runs are there already", highlight=False)
    if not todo:
        return
    done, bars = {}, {}
    with progress(console) as display:
        whole = display.add_task(f"{what}: {len(todo)} runs", total=total_flops(todo), note="")

        def on_event(cell: Cell, event: dict[str, Any]) -> None:
            run = cell.run
            if run.identity not in bars:
                label = f"  {short(run.cost.params)} params, {cell.budget:.1e} FLOPs"
                bars[run.identity] = display.add_task(label, total=run.steps, note="")
            note = "" if event["loss"] is None else f"loss {event['loss']:.3f}"
            display.update(bars[run.identity], completed=event["step"], note=note)
            done[run.identity] = run.cost.flops(event["step"] * run.batch_tokens)
            display.update(whole, completed=sum(done.values()))

        def on_outcome(cell: Cell, outcome: Outcome) -> None:
            run = cell.run
            if run.identity in bars:
                display.remove_task(bars[run.identity])
            done[run.identity] = run.cost.flops(run.tokens)
            display.update(whole, completed=sum(done.values()), note=f"{len(done)} of {len(todo)} runs")
            if outcome.status is Status.FAILED:
                console.print(f"run {run.identity} failed: {outcome.reason}", style="red", highlight=False)

        execute(
            cells, root, prepared, placement=placement, workers=workers, devices=devices, url=url,
            on_event=on_event, on_outcome=on_outcome,
        )  # fmt: skip
