"""Tables of text: labelled texts and pairs of texts, a line or an example each, from two named columns."""

from __future__ import annotations

import abc
import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.data import tfds
from experiments.data.sources import Source, decode, named_files, opened


class Entry(NamedTuple):
    """One line or example: a name that is stable when the table moves, and the text of its two columns."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class TableSource(Source):
    """Lines of two columns."""

    @abc.abstractmethod
    def read(self) -> Iterator[Entry]:
        """All entries in a deterministic order."""

    def entries(self) -> Iterator[Entry]:
        """All entries in a deterministic order.

        Raises:
            ValueError: for one whose columns are not both filled.
        """
        for entry in self.read():
            if not (entry.first and entry.second):
                raise ValueError(f"{entry.name} has an empty column; leave the line out, or fill it")
            yield entry

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Names and columns of the entries."""
        for entry in self.entries():
            yield entry.name, f"{entry.first}\t{entry.second}".encode()


@dataclass(frozen=True)
class TableFiles(TableSource):
    """UTF-8 tables, plain or compressed (.gz, .xz): .tsv with tabs between columns, or .jsonl with an object a line."""

    paths: tuple[str, ...]
    """Files or patterns such as 'reviews/*.tsv'."""

    columns: tuple[str, ...] = ("1", "2")
    """Two columns, in order: names of the header of a .tsv, or numbers from 1 on where it has none; keys of objects."""

    def __post_init__(self) -> None:
        if len(self.columns) != 2:
            raise ValueError(f"name two columns of the table, not {len(self.columns)}")

    def files(self) -> list[Path]:
        """The files matched, sorted by name. Raises FileNotFoundError where a pattern matches none."""
        return [path for _, path in named_files(self.paths)]

    def read(self) -> Iterator[Entry]:
        """The lines of each file in turn; blank ones are left out.

        Raises:
            ValueError: for a file of another kind, an empty or a damaged one, or a line that lacks a column; names
                file and line.
        """
        for name, path in named_files(self.paths):
            kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".xz")), "")
            if kind not in _READERS:
                raise ValueError(f"{path} is no table: want {' or '.join(_READERS)} (also .gz, .xz)")
            with opened(path) as file:
                for number, first, second in _READERS[kind](path, _lines(path, file), self.columns):
                    yield Entry(f"{name}:{number}", first, second)


@dataclass(frozen=True)
class TfdsTable(TableSource):
    """Two fields of a TensorFlow Datasets dataset; numbers of classes are read as their names."""

    name: str
    """Dataset, with config and version where wanted: 'glue/sst2'."""

    split: str = "train"
    """Split, or a slice of it: 'train[:10%]'."""

    columns: tuple[str, ...] = ("text", "label")
    """The two features, in order."""

    data_dir: str = ""
    """Folder of prepared datasets; empty for TFDS' own default."""

    def __post_init__(self) -> None:
        if len(self.columns) != 2:
            raise ValueError(f"name two fields of the dataset, not {len(self.columns)}")

    def files(self) -> list[Path]:
        """The files of the prepared dataset; prepares (and downloads) it where it is not there."""
        return tfds.files(self.name, self.data_dir)

    def read(self) -> Iterator[Entry]:
        """One entry an example."""
        for name, values in tfds.examples(self.name, self.split, self.columns, self.data_dir, label=self.columns[1]):
            pairs = zip(self.columns, values, strict=True)
            yield Entry(name, *(tfds.text(value, column, self.name) for column, value in pairs))


AnyTable = TableFiles | TfdsTable
"""Every kind of table."""

_Lines = Iterator[tuple[int, str]]


def _lines(path: Path, file: Any) -> _Lines:
    """Numbers and texts of the lines that are not blank."""
    offset = 0
    for number, line in enumerate(file, start=1):
        text = decode(line, path, offset).removesuffix("\n").removesuffix("\r")
        offset += len(line)
        if text.strip():
            yield number, text


def _tsv(path: Path, lines: _Lines, columns: tuple[str, ...]) -> Iterator[tuple[int, str, str]]:
    if all(column.isdecimal() for column in columns):
        places = [int(column) - 1 for column in columns]
        if min(places) < 0:
            raise ValueError("columns of a table without a header are counted from 1")
    else:
        _, header = next(lines)
        names = header.split("\t")
        places = [names.index(column) if column in names else _absent(path, 1, column, names) for column in columns]
    for number, line in lines:
        cells = line.split("\t")
        if max(places) >= len(cells):
            raise ValueError(f"{path}:{number} has {len(cells)} columns, and column {max(places) + 1} is asked for")
        yield number, cells[places[0]], cells[places[1]]


def _jsonl(path: Path, lines: _Lines, columns: tuple[str, ...]) -> Iterator[tuple[int, str, str]]:
    for number, line in lines:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path}:{number} is no JSON object but {type(entry).__name__}")
        values = [
            entry[column] if column in entry else _absent(path, number, column, list(entry)) for column in columns
        ]
        for column, value in zip(columns, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise ValueError(f"{path}:{number}: '{column}' is not text but {type(value).__name__}")
        yield number, str(values[0]), str(values[1])


def _absent(path: Path, number: int, column: str, known: list[str]) -> int:
    near = difflib.get_close_matches(column, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"{path}:{number} has no column '{column}'; {hint}")


_READERS: dict[str, Callable[..., Iterator[tuple[int, str, str]]]] = {".tsv": _tsv, ".jsonl": _jsonl}
