"""What is refused, derived or dropped before a table of runs is fitted."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scaling.runs.schema import Convention, Table, nearest, require

_POSITIVE = ("params", "params_nonembedding", "params_active", "tokens", "flops", "flops_6nd", "flops_kaplan", "loss")
_COUNTS = ("params", "params_nonembedding", "params_active", "tokens", "unique_tokens")
_GAP = 1e5  # no ladder jumps so far from one size to the next; thousands, millions and billions side by side do
_SMALLEST = 100  # counts below are taken for millions or billions


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
            require(frame, name, what=f"the table has no column {name!r}")
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
        require(frame, name, what=f"the table has no column {name!r}")
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
        require(frame, name, what=f"the table has no column {name!r} (asked for by the convention {convention})")
    return notes


def _numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    values = pd.to_numeric(frame[name], errors="coerce").astype(float)
    if values.isna().all() and len(frame):
        raise ValueError(f"column {name!r} holds no numbers (first value {frame[name].iloc[0]!r})")
    return values


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
