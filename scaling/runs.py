"""The table of runs: one row a training run, its columns, its units, and what is refused.

A table comes from anywhere: CSV, JSONL or Parquet, with columns of any name (`read` renames), and needs `params`,
`loss` and one of `tokens` / `flops`. Columns that are not in the schema are carried along untouched.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

SCHEMA: dict[str, str] = {
    "run": "identity of the run",
    "sweep": "name of the sweep it belongs to",
    "architecture": "name of the architecture",
    "objective": "what the loss is of; losses of different objectives cannot be compared",
    "role": "'sweep' (fitted) or 'held-out' (predicted, never fitted)",
    "params": "all parameters",
    "params_nonembedding": "parameters without token and position embeddings and head",
    "params_active": "parameters used per token",
    "tokens": "training tokens seen, repeats counted",
    "unique_tokens": "training tokens seen, repeats not counted",
    "flops": "training FLOPs, forward and backward, exact count",
    "flops_6nd": "6 x params x tokens",
    "flops_kaplan": "6 x params_nonembedding x tokens",
    "flops_min": "FLOPs of the same loss at batches far below the critical one (Kaplan's C_min)",
    "params_vocabulary": "parameters of the vocabulary: vocabulary x width",
    "experts": "experts of a routed layer; 1 for a dense model",
    "granularity": "width of the dense feed-forward layer over the width of one expert",
    "bits_weights": "precision of weights in training, bits",
    "bits_activations": "precision of activations in training, bits",
    "bits_kv": "precision of keys and values in training, bits",
    "bits_post": "precision of weights after training, bits",
    "loss": "held-out cross-entropy, nats per token, final",
    "loss_se": "standard error of loss, nats per token",
    "bits_per_byte": "held-out cross-entropy, bits per byte of text",
    "task_loss": "loss of a task's right answers, bits per byte",
    "accuracy": "share of a task's questions answered right",
    "error": "share of downstream questions answered wrong",
    "perplexity_ratio": "perplexity over that of the unigram model of the same vocabulary",
    "loss_increase": "loss added by quantizing after training, nats per token",
    "batch_tokens": "tokens per optimizer step",
    "learning_rate": "peak learning rate",
    "steps": "optimizer steps",
    "steps_min": "steps of the same loss at batches far above the critical one (Kaplan's S_min)",
    "critical_batch": "batch that costs twice the fewest steps and twice the fewest tokens, tokens",
    "lr_sum": "sum of the learning rate over all steps so far",
    "lr_annealing": "annealing area of the learning rate so far (Tissue's S_2)",
    "lr_drop": "fall of the learning rate so far, in pieces",
    "lr_after": "learning rate after each piece",
    "lr_since": "sum of the learning rate since each piece",
    "width": "width of the residual stream",
    "layers": "number of layers",
    "length": "context length, tokens",
    "vocab": "vocabulary size",
    "seed": "seed of initialisation and data order",
    "seconds": "wall-clock time, seconds",
    "status": "'done' or 'failed'",
    "reason": "why the run failed",
}
"""Every column the framework writes, and what it holds."""

# Floats as written, to the last bit: from pandas 3.1 on the only way, and the option deprecated.
_EXACT = {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
HELD_OUT = "held-out"
_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_POSITIVE = ("params", "params_nonembedding", "params_active", "tokens", "flops", "flops_6nd", "flops_kaplan", "loss")


@dataclass(frozen=True)
class Convention:
    """Which columns are meant by "N" and "C": exponents depend on it, so every result carries it.

    Attributes:
        params: the column taken as N.
        flops: the column taken as C, FLOPs.
    """

    params: str = "params"
    flops: str = "flops"

    def __str__(self) -> str:
        return f"N = {self.params}, C = {self.flops}"

    def view(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The table with this convention's columns under the names that laws read, `params` and `flops`."""
        named = {"params": self.params, "flops": self.flops}
        return frame.assign(**{ours: frame[theirs] for ours, theirs in named.items() if theirs in frame})


@dataclass(frozen=True)
class Table:
    """A checked table and what had to be done to get it.

    Attributes:
        frame: the rows that can be fitted, indexed 0, 1, ...
        notes: one sentence for each thing that was derived or dropped.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ", did you mean 'x'?", or the list of known names when none is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    lower = {candidate.lower(): candidate for candidate in reversed(known)}
    close = close or [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(map(repr, known))}" if known else ""


def read(path: str | Path, *, columns: Mapping[str, str] | None = None, where: str | None = None) -> pd.DataFrame:
    """Read a table of runs.

    Args:
        path: a .csv, .jsonl / .ndjson, or .parquet file (.csv and .jsonl also compressed: .gz, .xz, .zst).
        columns: our name -> the name in the file, for tables that use other names, `{"params": "Model Size"}`, or an
            expression of its columns, `{"params": "billions * 1e9"}`.
        where: keeps the rows for which this holds, a pandas query on the names in the file or ours, `"loss < 3"`.

    Returns:
        The rows, with columns renamed and nothing else changed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table we can read, a column that is not there, an expression that does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table of runs at {path}")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in {".gz", ".xz", ".zst", ".bz2"}]
    kind = suffixes[-1] if suffixes else ""
    if kind not in _KINDS:
        raise ValueError(f"{path}: tables are read from {', '.join(_KINDS)}, not {kind or 'no suffix'!r}")
    try:
        if kind in {".csv", ".tsv"}:
            separator = "\t" if kind == ".tsv" else ","
            frame = pd.read_csv(path, sep=separator, **_EXACT, encoding="utf-8-sig")
        elif kind in {".jsonl", ".ndjson"}:
            frame = pd.read_json(path, lines=True, precise_float=True)
        else:
            frame = pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the file is empty") from None
    except Exception as error:  # each reader has exceptions of its own
        raise ValueError(f"{path}: not a readable {kind[1:]} table ({str(error).splitlines()[0]})") from None
    if frame.empty:
        raise ValueError(f"{path}: the table has no rows")
    return view(frame, columns=columns, where=where, name=str(path))


def view(
    frame: pd.DataFrame, *, columns: Mapping[str, str] | None = None, where: str | None = None, name: str = "the table"
) -> pd.DataFrame:
    """A table with columns renamed and rows selected, as `read` does; `name` is what messages call it."""
    named = {ours: _column(frame, ours, theirs, name) for ours, theirs in (columns or {}).items() if ours != theirs}
    frame = frame.assign(**named)
    if where:
        frame = _select(frame, where, name)
    return frame.reset_index(drop=True)


def _column(frame: pd.DataFrame, ours: str, theirs: str, name: str) -> pd.Series:
    if theirs in frame:
        return frame[theirs]
    if re.search(r"[-+*/()]", theirs):
        odd = sorted((str(column) for column in frame if not str(column).isidentifier()), key=len, reverse=True)
        quoted = re.sub("|".join(map(re.escape, odd)), lambda match: f"`{match[0]}`", theirs) if odd else theirs
        try:
            return frame.eval(theirs if "`" in theirs else quoted, engine="python", local_dict={}, global_dict={})
        except Exception:  # whatever a text that is no expression raises
            raise ValueError(
                f"{name}: {theirs!r} (asked for as {ours}) is neither a column nor an expression of columns"
                + nearest(theirs, map(str, frame.columns))
            ) from None
    _ask_for(frame, theirs, what=f"{name}: no column {theirs!r} (asked for as {ours})")


Source = str | os.PathLike | pd.DataFrame | Table
"""Where runs may come from: a file, a table in memory, or one that is checked already."""


def load(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    convention: Convention | None = None,
    needs: Sequence[str] = ("params", "tokens", "flops", "loss"),
    minimum: int = 3,
) -> Table:
    """A checked table of the runs to fit, wherever they are; held-out rows and unusable ones are left out.

    Args:
        source: a path, a frame, or a `Table`, which is returned as it is.
        columns: as for `read`.
        where: as for `read`.
        convention: as for `check`.
        needs: as for `check`.
        minimum: as for `check`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as for `read` and `check`.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, pd.DataFrame):
        frame = view(source, columns=columns, where=where)
    else:
        frame = read(source, columns=columns, where=where)
    return check(split(frame)[0], convention=convention, needs=needs, minimum=minimum)


def _ask_for(frame: pd.DataFrame, name: str, *, what: str) -> None:
    if name not in frame.columns:
        raise ValueError(what + nearest(name, [str(column) for column in frame.columns]))


def _select(frame: pd.DataFrame, where: str, table: str) -> pd.DataFrame:
    try:
        kept = frame.query(where, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        raise ValueError(f"{table}: no column {name!r} in {where!r}" + nearest(name, map(str, frame.columns))) from None
    except Exception as error:  # whatever a text that is no expression raises
        raise ValueError(f"cannot read the row filter {where!r} ({str(error).splitlines()[0]})") from None
    if not isinstance(kept, pd.DataFrame):
        raise ValueError(f"the row filter {where!r} does not select rows; write a comparison such as 'loss < 3'")
    if kept.empty:
        raise ValueError(f"{table}: no row of {len(frame)} satisfies {where!r}")
    return kept


def check(
    frame: pd.DataFrame,
    *,
    convention: Convention | None = None,
    needs: Sequence[str] = ("params", "tokens", "flops", "loss"),
    minimum: int = 3,
) -> Table:
    """Make a table fit to be fitted: derive what is missing, drop what is not a finished run, say both.

    Args:
        frame: a table as `read` returns it.
        convention: which columns are N and C; they must exist, except `flops`, `tokens` and their 6ND forms, which
            are derived from each other.
        needs: columns that must be there and positive in every row kept, under our names.
        minimum: fewer usable rows than this is an error.

    Returns:
        The usable rows and notes.

    Raises:
        ValueError: a needed column is missing, holds no numbers or mixed units, or too few rows remain.
    """
    convention = convention or Convention()
    frame, notes, needs = frame.copy(), [], list(dict.fromkeys(needs))
    for name in needs:
        if name not in ("params", "tokens", "flops"):
            _ask_for(frame, name, what=f"the table has no column {name!r}")
    for name in dict.fromkeys((*_POSITIVE, *needs, convention.params, convention.flops)):
        if name in frame:
            frame[name] = _numbers(frame, name)
    sizes = {"params", "tokens", "flops"} & set(needs)
    if sizes:
        notes += _derive(frame, convention, sizes)
        needs += [name for name in (convention.params, convention.flops) if name in frame]
    frame, dropped = _drop(frame, sorted(set(needs)))
    notes += dropped
    if len(frame) < minimum:
        why = f" ({' '.join(dropped)})" if dropped else ""
        raise ValueError(f"{len(frame)} usable runs, at least {minimum} are needed{why}")
    _units(frame)
    if "loss" in needs:
        _one_objective(frame)
    return Table(frame=frame.reset_index(drop=True), notes=tuple(notes))


def _derive(frame: pd.DataFrame, convention: Convention, sizes: set[str]) -> list[str]:
    """Adds to the frame what of N, D and C follows from the rest."""
    notes = []
    if sizes <= set(frame) and "params" not in frame and convention.params not in frame:
        return notes  # a law of tokens or compute alone asks for no size
    if "params" not in frame and (convention.params == "params" or convention.params not in frame):
        name = convention.params if convention.params != "params" else "params"
        _ask_for(frame, name, what=f"the table has no column {name!r}")
    if "params" not in frame:
        frame["params"] = frame[convention.params]
        notes.append(f"params: not in the table; {convention.params} taken for it.")
    if "tokens" not in frame and "flops" not in frame:
        if sizes == {"params"}:
            return notes
        raise ValueError("the table has neither 'tokens' nor 'flops'" + nearest("tokens", map(str, frame.columns)))
    if "tokens" not in frame:
        frame["tokens"] = frame["flops"] / (6 * frame["params"])
        notes.append("tokens: not in the table; derived as flops / (6 x params).")
    if "flops" not in frame:
        frame["flops"] = 6 * frame["params"] * frame["tokens"]
        notes.append("flops: not in the table; derived as 6 x params x tokens.")
    frame["flops_6nd"] = 6 * frame["params"] * frame["tokens"]
    if "params_nonembedding" in frame:
        frame["flops_kaplan"] = 6 * frame["params_nonembedding"] * frame["tokens"]
    for name in (convention.params, convention.flops):
        _ask_for(frame, name, what=f"the table has no column {name!r} (asked for by the convention {convention})")
    return notes


def _numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    values = pd.to_numeric(frame[name], errors="coerce").astype(float)
    if values.isna().all() and len(frame):
        raise ValueError(f"column {name!r} holds no numbers (first value {frame[name].iloc[0]!r})")
    return values


_COUNTS = ("params", "params_nonembedding", "params_active", "tokens", "unique_tokens")
_GAP = 1e5  # no ladder jumps so far from one size to the next; thousands, millions and billions side by side do
_SMALLEST = 100  # counts below are taken for millions or billions


def _units(frame: pd.DataFrame) -> None:
    """Refuses counts that are in thousands, millions or billions, in whole columns or in some rows.

    Raises:
        ValueError: naming the column, the values, and what to write instead.
    """
    for name in _COUNTS:
        if name not in frame:
            continue
        values = np.unique(frame[name].to_numpy(np.float64))
        values = values[np.isfinite(values) & (values > 0)]
        if not len(values):
            continue
        ratio = values[1:] / values[:-1]
        if len(ratio) and ratio.max() > _GAP:
            below = int(np.argmax(ratio))
            raise ValueError(
                f"column {name!r} mixes units: it holds {values[below]:g} and, next above, {values[below + 1]:g}; "
                "write every row as a count of ones"
            )
        if values[-1] < _SMALLEST:
            raise ValueError(
                f"column {name!r} holds no counts of ones, its largest value is {values[-1]:g}; if these are billions, "
                f"map it by an expression, such as --{name} '{name} * 1e9'"
            )
    if {"params", "tokens", "flops"} <= set(frame):
        ratio = (frame["flops"] / (6 * frame["params"] * frame["tokens"])).to_numpy(np.float64)
        off = np.flatnonzero((ratio > 1e3) | (ratio < 1e-3))
        if len(off):
            row = frame.iloc[off[0]]
            raise ValueError(
                f"flops is {ratio[off[0]]:.1g} times 6 x params x tokens in {len(off)} of {len(frame)} rows (first: "
                f"params {row['params']:g}, tokens {row['tokens']:g}, flops {row['flops']:g}); one of the three is in "
                "other units, or its column is another quantity"
            )


def _one_objective(frame: pd.DataFrame) -> None:
    """Refuses to compare what cannot be compared.

    Raises:
        ValueError: losses of different objectives in one table.
    """
    labels = frame["objective"].dropna().astype(str).unique() if "objective" in frame else ()
    if len(labels) > 1:
        raise ValueError(
            f"the table mixes losses of the objectives {', '.join(map(repr, sorted(labels)))}, which no law compares; "
            f"keep one, such as --where \"objective == '{labels[0]}'\""
        )


def _drop(frame: pd.DataFrame, names: list[str]) -> tuple[pd.DataFrame, list[str]]:
    notes = []

    def drop(frame: pd.DataFrame, bad: pd.Series, why: str) -> pd.DataFrame:
        if not bad.any():
            return frame
        which = frame["run"].astype(str) if "run" in frame else frame.index.astype(str).to_series(index=frame.index)
        listed = ", ".join(which[bad][:5]) + (", ..." if bad.sum() > 5 else "")
        notes.append(f"{int(bad.sum())} row{'s' if bad.sum() > 1 else ''} dropped: {why} ({listed}).")
        return frame[~bad]

    if "status" in frame:
        frame = drop(frame, frame["status"].astype(str) == "failed", "the run failed")
    for name in names:
        frame = drop(frame, ~np.isfinite(frame[name]), f"{name} is missing or not finite")
        frame = drop(frame, frame[name] <= 0, f"{name} is not positive")
    odd = [name for name in frame if frame[name].dtype == object]  # lists and mappings have no hash
    same = frame.assign(**{name: frame[name].astype(str) for name in odd}).duplicated()
    frame = drop(frame, same, "the same row again")
    return frame, notes


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to fit and the rows held out, by column `role`; without that column every row is to fit."""
    if "role" not in frame:
        return frame, frame.iloc[:0]
    held = frame["role"].astype(str) == HELD_OUT
    return frame[~held].reset_index(drop=True), frame[held].reset_index(drop=True)


def write(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV: floats round-trip exactly, and the file appears whole or not at all.

    Args:
        frame: the rows; known columns are written first, in the order of `SCHEMA`.
        path: the file, replaced when it exists; its folder is made.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [name for name in SCHEMA if name in frame]
    ordered = frame[known + [name for name in frame.columns if name not in SCHEMA]]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    ordered.to_csv(partial, index=False)
    os.replace(partial, path)
    return path
