"""From finished runs to what people read: the tables, the fit, the figures, the report."""

import os
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import Cell, curves, table, write_csv
from scaling.approaches.held_out import HeldOut
from scaling.approaches.study import Study


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_tables(cells: Sequence[Cell], root: Path, folder: Path) -> None:
    """Writes `runs.csv` (one row a finished or failed run) and `curves.csv` (training loss along the runs).

    Args:
        cells: the sweep.
        root: folder of run folders.
        folder: where the tables go.
    """
    write_csv(folder / "runs.csv", table(list(cells), root))
    write_csv(folder / "curves.csv", curves(list(cells), root))


def fit_tables(folder: Path) -> tuple[Study, tuple[HeldOut, ...]]:
    """Fits everything to the tables of a folder, and predicts its held-out runs.

    Raises:
        ValueError: if the runs are too few or too alike for any law.
    """
    from scaling import runs
    from scaling.approaches.held_out import predict_held_out
    from scaling.approaches.study import study

    rows = runs.read(folder / "runs.csv")
    found = study(rows, runs.read(folder / "curves.csv"))
    return found, predict_held_out(found, rows)


def publish(study: Study, held_out: tuple[HeldOut, ...], folder: Path, *, title: str, command: str) -> None:
    """Writes `fit.json`, the figures as PNG and SVG, and `report.html`."""
    from scaling import figures, report

    study.write(folder / "fit.json", held_out=[each.to_dict() for each in held_out])
    figures.save(study, folder, held_out)
    report.write(study, folder / "report.html", held_out, title=title, command=command)
