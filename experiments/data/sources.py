"""Where data comes from. A source is a frozen dataclass that names files and yields what they hold in a fixed order.

Here are the sources of text; `sequences` has that of symbols, `tables` and `images` have those of labelled text, pairs
and images. A new source of text is one new subclass of `TextSource` (say which files are read, and read them) and one
more name in `packed.AnySource`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import difflib
import enum
import glob
import gzip
import hashlib
import lzma
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from experiments.data import tfds


class Document(NamedTuple):
    """One document: a name that is stable when the corpus moves to another folder, and its text, never empty."""

    name: str
    text: str


class Contents(NamedTuple):
    """What a source holds: sha256 over names and texts in order, number of documents, UTF-8 bytes of their texts."""

    sha256: str
    documents: int
    bytes: int


class Hasher:
    """Accumulates `Contents` over documents; every length is hashed too, so no two corpora share an input."""

    def __init__(self) -> None:
        self._sha, self._documents, self._bytes = hashlib.sha256(), 0, 0

    def add(self, name: str, data: bytes) -> None:
        """Adds one document, its text as UTF-8."""
        encoded = name.encode()
        self._sha.update(b"%d %d " % (len(encoded), len(data)) + encoded)
        self._sha.update(data)
        self._documents += 1
        self._bytes += len(data)

    def contents(self) -> Contents:
        """What was added so far."""
        return Contents(self._sha.hexdigest(), self._documents, self._bytes)


@dataclass(frozen=True)
class Source(abc.ABC):
    """Data to train on. While the files stay the same, it yields the same in the same order."""

    def __str__(self) -> str:
        values = ((name, getattr(self, name)) for name in (field.name for field in dataclasses.fields(self)))
        settings = (f"{name}={value.value if isinstance(value, enum.Enum) else value}" for name, value in values)
        return f"{type(self).__name__}({', '.join(settings)})"

    @abc.abstractmethod
    def files(self) -> list[Path]:
        """The files that are read, sorted. Raises FileNotFoundError or ValueError if there are none."""

    @abc.abstractmethod
    def records(self) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of everything there is, in order: what `contents` hashes."""

    def contents(self) -> Contents:
        """Reads everything and returns its hash and size."""
        hasher = Hasher()
        for name, data in self.records():
            hasher.add(name, data)
        return hasher.contents()

    def stamp(self) -> tuple[str, int]:
        """A cheap stand-in for the content hash, from the files' metadata alone.

        Returns:
            A hash of the source and of path, size, inode, and times of modification and of status change of each file
            (the latter cannot be set back by ordinary means), and the newest of these times in nanoseconds since 1970.
        """
        sha, newest = hashlib.sha256(repr(self).encode()), 0
        for path in self.files():
            status = path.stat()
            fields = (str(path.absolute()), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            sha.update(repr(fields).encode())
            newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        return sha.hexdigest()[:32], newest


@dataclass(frozen=True)
class TextSource(Source):
    """Text to train on."""

    @abc.abstractmethod
    def read(self) -> Iterator[Document]:
        """All documents in a deterministic order; empty ones are allowed here and left out by `documents`."""

    def documents(self) -> Iterator[Document]:
        """The documents that are not empty, in order."""
        return (document for document in self.read() if document.text)

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Names and texts of the documents."""
        return ((document.name, document.text.encode()) for document in self.documents())


@dataclass(frozen=True)
class Embedded(TextSource):
    """The Python standard library's own source without its tests: about 11 MB on every machine, one document a file."""

    _SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})

    def root(self) -> Path:
        """The folder of the standard library, that of the base interpreter in a virtual environment."""
        return Path(sysconfig.get_path("stdlib"))

    def files(self) -> list[Path]:
        """The library's `*.py` files, sorted by relative name. Raises FileNotFoundError if it has no plain sources."""
        root, found = self.root(), []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in self._SKIPPED]
            # _sysconfigdata records how this machine's interpreter was built; it is no text of the library.
            found += [
                Path(folder, name) for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")
            ]
        if not found:
            raise FileNotFoundError(f"no Python sources in {root}; name text files of your own instead")
        return sorted(found, key=lambda path: path.relative_to(root).as_posix())

    def read(self) -> Iterator[Document]:
        """One document a file, named by its path inside the library."""
        root = self.root()
        for path in self.files():
            yield Document(path.relative_to(root).as_posix(), decode(path.read_bytes(), path))


class Documents(enum.Enum):
    """What one document is in text files."""

    AUTO = "auto"
    """Each file where there are several, paragraphs where there is one."""
    FILE = "file"
    """Each file, exactly as it is."""
    LINE = "line"
    """Each line without its end, empty lines left out."""
    PARAGRAPH = "paragraph"
    """Each run of lines between blank lines."""


@dataclass(frozen=True)
class TextFiles(TextSource):
    """UTF-8 text files, plain or compressed (.gz, .xz)."""

    paths: tuple[str, ...]
    """Files or patterns such as 'books/*.txt' or 'books/**/*.txt.xz'."""

    split_into: Documents = Documents.AUTO
    """What one document is: each file, line or paragraph."""

    def files(self) -> list[Path]:
        """The files matched, sorted by name. Raises FileNotFoundError where a pattern matches none."""
        return [path for _, path in named_files(self.paths)]

    def read(self) -> Iterator[Document]:
        """The documents of each file in turn.

        Raises:
            ValueError: for an empty file, one that is not UTF-8, or a damaged archive; names file and byte offset.
        """
        files = named_files(self.paths)
        split_into = self.split_into
        if split_into is Documents.AUTO:
            split_into = Documents.FILE if len(files) > 1 else Documents.PARAGRAPH
        for name, path in files:
            with opened(path) as file:
                yield from _SPLITTERS[split_into](name, path, file)


def named_files(patterns: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Pairs of name and path of the files that match, sorted.

    A name is relative to the fixed part of its pattern, so that corpora can move.

    Raises:
        FileNotFoundError: where a pattern matches none.
        ValueError: for a folder, or no pattern.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        if os.path.isdir(expanded):
            raise ValueError(f"'{pattern}' is a folder; to read files in it say '{pattern.rstrip('/')}/**/*.txt'")
        if os.path.exists(expanded):
            matches, base = [expanded], os.path.dirname(expanded)
        else:
            matches = [name for name in glob.glob(expanded, recursive=True) if os.path.isfile(name)]
            base = os.path.dirname(re.split(r"[*?\[]", expanded, maxsplit=1)[0])
        if not matches:
            raise FileNotFoundError(f"no file matches '{pattern}'{nearest_file(expanded)}")
        for match in matches:
            found.setdefault(Path(match).absolute(), Path(os.path.relpath(match, base or ".")).as_posix())
    if not found:
        raise ValueError("name at least one path or pattern")
    return sorted((name, path) for path, name in found.items())


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read, unpacked where it is an archive (.gz, .xz).

    Raises:
        ValueError: for an empty file or a damaged archive; names it.
    """
    opener: Callable[..., Any] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            if not file.peek(1):
                raise ValueError(f"{path} is empty")
            yield file
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole {path.suffix} archive: {error}") from error


def decode(data: bytes, path: Path | str, offset: int = 0) -> str:
    """UTF-8 as text. Raises ValueError with the name and the offset in it of what is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}; convert it first"
        ) from error


def spelled(sequence: Any, where: str) -> str:
    """A sequence as text.

    Raises:
        ValueError: if it is none; `where` says which.
    """
    if isinstance(sequence, str):
        return sequence
    if not isinstance(sequence, list):
        raise ValueError(f"{where} is no sequence but {type(sequence).__name__}")
    if sequence and all(isinstance(part, list) for part in sequence):
        if len(lengths := {len(part) for part in sequence}) > 1:
            raise ValueError(f"{where}: parts that sound together are of one length, and these of {sorted(lengths)}")
        sequence = [symbol for step in zip(*sequence, strict=True) for symbol in step]
    for symbol in sequence:
        if isinstance(symbol, bool) or not isinstance(symbol, str | int | float):
            raise ValueError(f"{where}: a symbol is a number or a word, not {type(symbol).__name__}")
        if isinstance(symbol, str) and (not symbol or any(character.isspace() for character in symbol)):
            raise ValueError(f"{where}: symbol {symbol!r} is empty or has a space in it")
    return "".join(f"{symbol} " for symbol in sequence)


def _whole(name: str, path: Path, file: BinaryIO) -> Iterator[Document]:
    yield Document(name, decode(file.read(), path))


def _lines(name: str, path: Path, file: BinaryIO) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(file, start=1):
        yield Document(f"{name}:{number}", decode(line, path, offset).removesuffix("\n").removesuffix("\r"))
        offset += len(line)


def _paragraphs(name: str, path: Path, file: BinaryIO) -> Iterator[Document]:
    paragraph: list[str] = []
    first = 0
    for number, line in enumerate(_lines(name, path, file), start=1):
        if line.text.strip():
            first = first if paragraph else number
            paragraph.append(line.text)
        elif paragraph:
            yield Document(f"{name}:{first}", "\n".join(paragraph))
            paragraph = []
    if paragraph:
        yield Document(f"{name}:{first}", "\n".join(paragraph))


_SPLITTERS = {Documents.FILE: _whole, Documents.LINE: _lines, Documents.PARAGRAPH: _paragraphs}


def nearest_file(path: str | os.PathLike[str]) -> str:
    """A question that names the file or folder beside `path` of nearest name; empty where none is near."""
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    names = [name for name in os.listdir(folder) if not name.startswith(".")] if os.path.isdir(folder) else []
    close = difflib.get_close_matches(os.path.basename(path), names, n=1)
    return f"; did you mean '{os.path.join(os.path.dirname(path), close[0])}'?" if close else ""


@dataclass(frozen=True)
class Tfds(TextSource):
    """A field of a TensorFlow Datasets dataset, read as a random-access source (ArrayRecord) without TensorFlow.

    The field holds text, or numbers: a sequence of symbols, or steps of several at a time.
    """

    name: str
    """Dataset, with config and version where wanted: 'wiki40b/en:1.3.0'."""

    split: str = "train"
    """Split, or a slice of it: 'train[:10%]'."""

    field: str = "text"
    """The feature that holds the text."""

    data_dir: str = ""
    """Folder of prepared datasets; empty for TFDS' own default."""

    def files(self) -> list[Path]:
        """The files of the prepared dataset; prepares (and downloads) it where it is not there."""
        return tfds.files(self.name, self.data_dir)

    def read(self) -> Iterator[Document]:
        """One document an example, in the order of the data source."""
        for name, (value,) in tfds.examples(self.name, self.split, (self.field,), self.data_dir):
            if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
                yield Document(name, spelled(value.reshape(-1).tolist(), name))
            else:
                yield Document(name, tfds.text(value, self.field, self.name))
