"""`scaling fit`: a law, a table of runs, and how sure the fit is."""

from __future__ import annotations

import glob
import json
import shlex
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.buckets import Place, copied, kind_and_path
from scaling.display import Displayed, Page, Section, end, number, plain

if TYPE_CHECKING:
    import pandas as pd

    from scaling.approaches.held_out import HeldOut
    from scaling.approaches.study import Study
    from scaling.certainty.identifiability import Identifiability
    from scaling.certainty.intervals import Intervals
    from scaling.fitting.fit import Fit

RUNS, CURVES = "runs.csv", "curves.csv"
_WIDTH = 120  # of output that goes to a file


def table_at(table: str) -> tuple[Place, str]:
    """The folder of a table of runs, and its name; of one in a bucket, a copy of it and of the curves beside it.

    Args:
        table: path or URL of the table, or of the folder of a sweep, whose table is meant.

    Raises:
        ValueError, OSError: as `copied`.
    """
    if not (named := kind_and_path(table)):
        return (Place(Path(table)), RUNS) if Path(table).is_dir() else (Place(Path(table).parent), Path(table).name)
    folder, slash, name = named[1].rpartition("/")
    if not PurePosixPath(name).suffix:
        folder, slash, name = named[1], "/", RUNS
    if not slash:
        raise ValueError(f"{table} is a bucket, and no table of runs; those are named gs://bucket/folder/runs.csv")
    return copied(f"{named[0]}://{folder}", glob.escape(name), CURVES), name


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Where the runs are and what their columns are called; shared by fit, plot and report."""

    table: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TABLE|URL")]
    """Table of runs (.csv, .jsonl, .parquet), also gs://bucket/runs.csv, with params, loss and tokens or flops;
    or the folder of a sweep."""
    params: str = "params"
    """Column with the number of parameters."""
    tokens: str = "tokens"
    """Column with the number of training tokens."""
    loss: str = "loss"
    """Column with the held-out loss, nats per token."""
    flops: str = "flops"
    """Column with the training FLOPs."""
    map: tuple[str, ...] = ()
    """Other columns a law reads, by the table's names or expressions of them, such as: --map unique_tokens=uniq."""
    where: str | None = None
    """Keep only rows for which this holds, such as 'loss < 3'."""
    resamples: int = 1000
    """Bootstrap resamples behind the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""

    def read(self) -> pd.DataFrame:
        """The table, its columns under our names."""
        from scaling import runs

        names = {name: getattr(self, name) for name in ("params", "tokens", "loss", "flops")}
        for each in self.map:
            ours, equals, theirs = each.partition("=")
            if not (ours and equals and theirs):
                raise ValueError(f"--map takes NAME=COLUMN, such as unique_tokens=uniq, not {each!r}")
            names[ours.strip()] = theirs.strip()
        place, name = self._found
        with place.named():
            columns = {k: v for k, v in names.items() if v != k}
            return runs.read(place.folder / name, columns=columns, where=self.where)

    @cached_property
    def _found(self) -> tuple[Place, str]:
        return table_at(self.table)

    def mapping(self) -> str:
        """The options that differ from their defaults, as typed."""
        given = [(name, getattr(self, name)) for name in ("params", "tokens", "loss", "flops")]
        said = [f" --{name} {shlex.quote(value)}" for name, value in given if value != name]
        said += [" --map" + "".join(f" {shlex.quote(each)}" for each in self.map)] if self.map else []
        said += [f" --where {shlex.quote(self.where)}"] if self.where else []
        said += [f" --{name} {value}" for name, value, usual in self._counts() if value != usual]
        return "".join(said)

    def _counts(self):
        return (("resamples", self.resamples, 1000), ("seed", self.seed, 0))

    def curves(self) -> pd.DataFrame | None:
        """The training curves that lie beside the table, if any."""
        from scaling import runs

        place, name = self._found
        beside = place.folder / CURVES
        with place.named():
            return runs.read(beside) if beside.is_file() and name != CURVES else None

    def study(self) -> tuple[Study, tuple[HeldOut, ...]]:
        """Everything fitted to the table, and its held-out runs predicted."""
        from scaling.approaches.held_out import predict_held_out
        from scaling.approaches.study import study

        table = self.read()
        found = study(table, self.curves(), resamples=self.resamples, seed=self.seed)
        return found, predict_held_out(found, table)


@dataclass(frozen=True)
class Command(TableOptions):
    """Fit a scaling law to a table of runs and say how sure it is.

    Prints parameters with 95 % intervals, the evidence that they are the optimum, and what to know before trusting
    them; --json prints one object instead. `scaling fit runs.csv --law ?` lists the laws. Rows with role 'held-out'
    are left out.
    """

    law: str = "chinchilla"
    """Name of the law."""
    json: bool = False
    """Print one JSON object: law, columns, parameters, intervals, objective, certificate, warnings."""
    least_squares: bool = False
    """Minimise squares of log residuals in place of their Huber loss."""
    delta: float | None = None
    """Of the Huber loss on log residuals; by default 1e-3 from 100 runs on (as Hoffmann et al.), 1e-2 below."""
    weights: str | None = None
    """Column of row weights; of loss_se the inverse square of the relative error is taken."""
    intervals: Literal["usual", "bootstrap", "laplace", "profile"] = "usual"
    """How intervals are found; by default the bootstrap from 100 runs on, the profile likelihood below."""
    clusters: str | None = None
    """Column whose equal values mark rows that share their noise, such as checkpoints of one run."""
    identify: bool = False
    """Say of every parameter whether the table determines it (a profile of each; takes a few seconds more)."""

    def __call__(self) -> int:
        """Fit and print."""
        from scaling import laws, runs
        from scaling.certainty.bootstrap import Bootstrap
        from scaling.certainty.identifiability import identify
        from scaling.certainty.intervals import Method, intervals
        from scaling.fitting.fit import Kind, Objective, fit

        if self.law == "?":
            print_laws()
            return 0
        law = laws.get(self.law)
        needs = (*(name for name in law.columns if name not in law.unchecked), law.target)
        table = runs.load(self.read(), needs=needs, minimum=1)
        usual = Objective.usual(len(table.frame))
        kind = Kind.LEAST_SQUARES if self.least_squares else Kind.HUBER
        found = fit(table, law, objective=Objective(kind, self.delta or usual.delta, self.weights))
        labels = self._labels(table.frame)
        method = None if self.intervals == "usual" else Method(self.intervals)
        shown = Shown(found, columns={name: getattr(self, name, name) for name in law.columns})
        try:
            sure = intervals(
                found, method=method, resamples=self.resamples, seed=self.seed, clusters=labels,
                replicates=_replicates(table.frame, law.target),
            )  # fmt: skip
            shown = replace(shown, intervals=sure)
            if self.identify:
                draws = sure.draws if isinstance(sure.draws, Bootstrap) else None
                shown = replace(shown, verdicts=identify(found, draws=draws, seed=self.seed, clusters=labels))
        except ValueError as error:
            if not found.warnings:
                raise
            shown = replace(shown, fit=replace(found, warnings=(*found.warnings, f"no intervals: {error}")))
        print_result(shown, as_json=self.json)
        return 0

    def _labels(self, frame: pd.DataFrame):
        from scaling.runs import nearest

        if self.clusters is None:
            return None
        if self.clusters not in frame:
            raise ValueError(f"no column {self.clusters!r} to cluster by" + nearest(self.clusters, map(str, frame)))
        return frame[self.clusters].to_numpy()


def _replicates(frame: pd.DataFrame, target: str):
    from scaling.certainty.replicates import SEEDS, replicates

    return replicates(frame, target=target) if any(name in frame for name in SEEDS) else None


@dataclass(frozen=True)
class Shown(Displayed):
    """A fit with its intervals and verdicts, as the command shows it."""

    fit: Fit
    columns: dict[str, str]
    intervals: Intervals | None = None
    verdicts: Identifiability | None = None

    def page(self) -> Page:
        """Parameters with their intervals in place of the bare values; the rest as the parts show it."""
        fit, rows = self.fit.page(), []
        sure = self.intervals.page() if self.intervals else Page("")
        for each in self.fit.law.parameters:
            at = self.intervals[each.name] if self.intervals else None
            ends = (end(at.low), end(at.high)) if at else ("–", "–")
            verdict = (self.verdicts[each.name].standing.value,) if self.verdicts else ()
            rows.append((each.name, number(self.fit.parameters[each.name]), *ends, *verdict, each.meaning))
        header = ("parameter", "value", "low", "high", *(("verdict",) if self.verdicts else ()), "meaning")
        said = self.verdicts.page() if self.verdicts else Page("")
        method = (f"intervals: {self.intervals.method}",) if self.intervals else ()
        return Page(
            answer=fit.answer,
            warnings=(*fit.warnings, *(each for each in sure.warnings if not self.verdicts), *said.warnings),
            sections=(Section("parameters", header, tuple(rows)), *fit.sections[1:]),
            notes=(*said.notes, *method, *sure.notes, *fit.notes),
        )

    def to_dict(self) -> dict:
        """One object: what was fitted, on which of the table's own columns, and how sure."""
        found = self.fit.to_dict() | {"columns": self.columns}
        intervals = self.intervals.to_dict() if self.intervals else {}
        first = {name: found[name] for name in ("law", "columns", "parameters")} | {"intervals": intervals}
        verdicts = {"identifiability": self.verdicts.to_dict()["verdicts"]} if self.verdicts else {}
        return plain(first | found | verdicts)


def print_laws() -> None:
    """Every law with its columns and source."""
    from rich.console import Console
    from rich.table import Table

    from scaling import laws

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("law", "columns", "formula", "source"):
        table.add_column(name, overflow="fold")
    for law in laws.LAWS.values():
        table.add_row(law.name, ", ".join(law.columns), law.text, law.source)
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(table)


def print_result(result: Displayed, *, as_json: bool) -> None:
    """A result as it shows itself, or as one JSON object."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(result)
