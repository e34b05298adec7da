"""`scaling fit`: a law, a table of runs, and how sure the fit is."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import pandas as pd

    from scaling.display import Displayed
    from scaling.fitting import Fit
    from scaling.held_out import HeldOut
    from scaling.study import Study
    from scaling.uncertainty import Bootstrap

_WIDTH = 120  # of output that goes to a file


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Where the runs are and what their columns are called; shared by fit, plot and report."""

    table: tyro.conf.Positional[Path]
    """Table of runs (.csv, .jsonl or .parquet) with params, loss and one of tokens / flops."""
    params: str = "params"
    """Column with the number of parameters."""
    tokens: str = "tokens"
    """Column with the number of training tokens."""
    loss: str = "loss"
    """Column with the held-out loss, nats per token."""
    flops: str = "flops"
    """Column with the training FLOPs."""
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
        return runs.read(self.table, columns={k: v for k, v in names.items() if v != k}, where=self.where)

    def mapping(self) -> str:
        """The options that differ from their defaults, as typed."""
        given = [(name, getattr(self, name)) for name in ("params", "tokens", "loss", "flops")]
        said = [f" --{name} {shlex.quote(value)}" for name, value in given if value != name]
        said += [f" --where {shlex.quote(self.where)}"] if self.where else []
        said += [f" --{name} {value}" for name, value, usual in self._counts() if value != usual]
        return "".join(said)

    def _counts(self):
        return (("resamples", self.resamples, 1000), ("seed", self.seed, 0))

    def curves(self) -> pd.DataFrame | None:
        """The training curves that lie beside the table, if any."""
        from scaling import runs

        beside = self.table.with_name("curves.csv")
        return runs.read(beside) if beside.is_file() and beside != self.table else None

    def study(self) -> tuple[Study, tuple[HeldOut, ...]]:
        """Everything fitted to the table, and its held-out runs predicted."""
        from scaling.held_out import predict_held_out
        from scaling.study import study

        table = self.read()
        found = study(table, self.curves(), resamples=self.resamples, seed=self.seed)
        return found, predict_held_out(found, table)


@dataclass(frozen=True)
class Command(TableOptions):
    """Fit a scaling law to a table of runs and say how sure it is.

    Prints parameters with 95 % intervals and what to know before trusting them; --json prints one object instead.
    Laws: chinchilla, kaplan-n, kaplan-d, kaplan-c, kaplan-nd, and power-X, floor-X for X in params, tokens, flops.
    Rows with role 'held-out' are left out.
    """

    law: str = "chinchilla"
    """Name of the law."""
    json: bool = False
    """Print one JSON object: law, columns, parameters, intervals, objective, certificate, warnings."""
    delta: float | None = None
    """Of the Huber loss on log residuals; by default 1e-3 from 100 runs on (as Hoffmann et al.), 1e-2 below."""

    def __call__(self) -> int:
        """Fit and print."""
        from scaling import laws
        from scaling.fitting import Objective, fit
        from scaling.uncertainty import bootstrap

        law = laws.get(self.law)
        objective = Objective(delta=self.delta) if self.delta else None
        found = fit(self.read(), law, objective=objective)
        try:
            boot = bootstrap(found, resamples=self.resamples, seed=self.seed)
        except ValueError as error:
            if not found.warnings:
                raise
            boot, found = None, replace(found, warnings=(*found.warnings, f"no intervals: {error}"))
        if self.json:
            print_json(found, boot, found.notes, columns={name: getattr(self, name, name) for name in law.columns})
        else:
            print_table(found, boot, found.notes)
        return 0


def print_result(result: Displayed, *, as_json: bool) -> None:
    """A result as it shows itself, or as one JSON object."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(result)


def print_json(fit: Fit, boot: Bootstrap | None, notes: tuple[str, ...], *, columns: dict[str, str]) -> None:
    """One object on standard output; `columns` names the table's own columns the law was fitted on."""
    found = fit.to_dict() | {"columns": columns}
    intervals = {
        name: {"low": each.low, "high": each.high, "method": boot.method}
        for name, each in ((name, boot.interval(name)) for name in (fit.law.names if boot else ()))
    }
    order = ("law", "columns", "parameters")
    print(
        json.dumps({k: found[k] for k in order} | {"intervals": intervals} | found | {"notes": list(notes)}, indent=2)
    )


def print_table(fit: Fit, boot: Bootstrap | None, notes: tuple[str, ...]) -> None:
    """Parameters, intervals and diagnostics for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{fit.law.name}[/]  {fit.law.text}  [dim]{fit.law.source}[/]")
    console.print(f"[dim]{len(fit.residuals)} runs; {fit.convention}[/]")
    for warning in fit.warnings:
        console.print(f"[bold yellow]▲[/] {warning}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("parameter")
    for name in ("value", "low", "high"):
        table.add_column(name, justify="right")
    table.add_column("meaning", style="dim")
    for each in fit.law.parameters:
        interval = boot.interval(each.name) if boot else None
        ends = (interval.low, interval.high) if interval else (float("nan"), float("nan"))
        numbers = (f"{value:.6g}" for value in (fit.parameters[each.name], *ends))
        table.add_row(each.name, *numbers, each.meaning)
    console.print(table)
    certificate = fit.certificate
    verdict = "[green]✓ certified optimum[/]" if certificate.passed else "[bold yellow]▲ no certified optimum[/]"
    console.print(
        f"{verdict}: objective {fit.value:.8g}, reached by {certificate.share:.0%} of {certificate.starts} starts; "
        f"residuals {fit.sigma:.2%} of the loss"
    )
    console.print(f"[dim]objective: {fit.objective}; intervals: {boot.method if boot else 'none'}[/]")
    for note in notes:
        console.print(f"[dim]· {note}[/]")
