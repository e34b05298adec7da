"""Where text comes from. A source is a frozen dataclass that names files and yields documents in a fixed order.

A new source is one new subclass of `Source` (say which files are read, and read them) and one more name in `AnySource`.
"""

from __future__ import annotations

import abc
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

_EXAMPLES = 256  # of a TFDS dataset read at once


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
    """Text to train on. While the files stay the same, `documents` yields the same ones in the same order."""

    def __str__(self) -> str:
        values = ((name, getattr(self, name)) for name in (field.name for field in dataclasses.fields(self)))
        settings = (f"{name}={value.value if isinstance(value, enum.Enum) else value}" for name, value in values)
        return f"{type(self).__name__}({', '.join(settings)})"

    @abc.abstractmethod
    def files(self) -> list[Path]:
        """The files that `read` reads, sorted. Raises FileNotFoundError or ValueError if there are none."""

    @abc.abstractmethod
    def read(self) -> Iterator[Document]:
        """All documents in a deterministic order; empty ones are allowed here and left out by `documents`."""

    def documents(self) -> Iterator[Document]:
        """The documents that are not empty, in order."""
        return (document for document in self.read() if document.text)

    def contents(self) -> Contents:
        """Reads everything and returns its hash and size."""
        hasher = Hasher()
        for document in self.documents():
            hasher.add(document.name, document.text.encode())
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
class Embedded(Source):
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
            yield Document(path.relative_to(root).as_posix(), _decode(path.read_bytes(), path))


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
class TextFiles(Source):
    """UTF-8 text files, plain or compressed (.gz, .xz)."""

    paths: tuple[str, ...]
    """Files or patterns such as 'books/*.txt' or 'books/**/*.txt.xz'."""

    split_into: Documents = Documents.AUTO
    """What one document is: each file, line or paragraph."""

    def _named_files(self) -> list[tuple[str, Path]]:
        """Pairs of name and path. The name is relative to the fixed part of the pattern, so that corpora can move."""
        found: dict[Path, str] = {}
        for pattern in self.paths:
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
            raise ValueError("TextFiles needs at least one path or pattern")
        return sorted((name, path) for path, name in found.items())

    def files(self) -> list[Path]:
        """The files matched, sorted by name. Raises FileNotFoundError where a pattern matches none."""
        return [path for _, path in self._named_files()]

    def read(self) -> Iterator[Document]:
        """The documents of each file in turn.

        Raises:
            ValueError: for an empty file, one that is not UTF-8, or a damaged archive; names file and byte offset.
        """
        files = self._named_files()
        split_into = self.split_into
        if split_into is Documents.AUTO:
            split_into = Documents.FILE if len(files) > 1 else Documents.PARAGRAPH
        for name, path in files:
            try:
                with _open(path) as file:
                    if not file.peek(1):  # type: ignore[attr-defined]
                        raise ValueError(f"{path} is empty")
                    yield from _SPLITTERS[split_into](name, path, file)
            except (lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
                raise ValueError(f"{path} is not a whole {path.suffix} archive: {error}") from error


def _open(path: Path) -> BinaryIO:
    opener: Callable[..., Any] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def _decode(data: bytes, path: Path | str, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}; convert it first"
        ) from error


def _whole(name: str, path: Path, file: BinaryIO) -> Iterator[Document]:
    yield Document(name, _decode(file.read(), path))


def _lines(name: str, path: Path, file: BinaryIO) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(file, start=1):
        yield Document(f"{name}:{number}", _decode(line, path, offset).removesuffix("\n").removesuffix("\r"))
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


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if 0 < len(known) < 20 else ""


def nearest_file(path: str | os.PathLike[str]) -> str:
    """A question that names the file or folder beside `path` of nearest name; empty where none is near."""
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    names = [name for name in os.listdir(folder) if not name.startswith(".")] if os.path.isdir(folder) else []
    close = difflib.get_close_matches(os.path.basename(path), names, n=1)
    return f"; did you mean '{os.path.join(os.path.dirname(path), close[0])}'?" if close else ""


@dataclass(frozen=True)
class Tfds(Source):
    """A field of a TensorFlow Datasets dataset, read as a random-access source (ArrayRecord) without TensorFlow."""

    name: str
    """Dataset, with config and version where wanted: 'wiki40b/en:1.3.0'."""

    split: str = "train"
    """Split, or a slice of it: 'train[:10%]'."""

    field: str = "text"
    """The feature that holds the text."""

    data_dir: str = ""
    """Folder of prepared datasets; empty for TFDS' own default."""

    def _builder(self) -> Any:
        """The dataset's builder, prepared.

        Raises:
            ValueError: for an unknown dataset, split or field, or one that is neither here nor to be downloaded.
        """
        import tensorflow_datasets as tfds

        data_dir = os.path.expanduser(self.data_dir) or None
        if data_dir and not os.path.isdir(data_dir):
            raise FileNotFoundError(f"TFDS data_dir {data_dir} does not exist")
        try:
            builder = tfds.builder(self.name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            here = sorted(path.name for path in Path(data_dir).iterdir() if path.is_dir()) if data_dir else []
            hint = _nearest(self.name, here + tfds.list_builders(with_community_datasets=False))
            raise ValueError(f"TFDS has no dataset '{self.name}'" + hint) from error
        except Exception as error:  # an unknown config or version: each its own class in TFDS
            raise ValueError(f"TFDS cannot open '{self.name}': {_first_line(error)}") from error
        if not builder.is_prepared():
            try:
                builder = tfds.builder(self.name, data_dir=data_dir, file_format="array_record")
                builder.download_and_prepare()
            except Exception as error:  # whatever a download can raise
                raise ValueError(
                    f"TFDS dataset '{self.name}' is not prepared in {builder.data_dir} "
                    f"and could not be made: {_first_line(error)}"
                ) from error
        splits = list(builder.info.splits)
        for part in re.findall(r"(?:^|\+)\s*([\w.-]+)", self.split) or [self.split]:
            if part not in splits:
                raise ValueError(f"TFDS dataset '{self.name}' has no split '{part}'{_nearest(part, splits)}")
        features = list(builder.info.features)
        if self.field not in features:
            raise ValueError(f"TFDS dataset '{self.name}' has no field '{self.field}'{_nearest(self.field, features)}")
        return builder

    def files(self) -> list[Path]:
        """The files of the prepared dataset; prepares (and downloads) it where it is not there."""
        return sorted(path for path in Path(self._builder().data_dir).rglob("*") if path.is_file())

    def read(self) -> Iterator[Document]:
        """One document an example, in the order of the data source."""
        builder = self._builder()
        try:
            examples = builder.as_data_source(split=self.split)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"TFDS cannot read split '{self.split}' of '{self.name}': {_first_line(error)}") from error
        for start in range(0, len(examples), _EXAMPLES):
            indices = range(start, min(start + _EXAMPLES, len(examples)))
            for index, example in zip(indices, examples.__getitems__(indices), strict=True):
                value, name = example[self.field], f"{self.name}/{self.split}/{index}"
                if not isinstance(value, bytes | str):
                    kind = type(value).__name__
                    raise ValueError(f"field '{self.field}' of TFDS dataset '{self.name}' is not text but {kind}")
                yield Document(name, value if isinstance(value, str) else _decode(value, f"example {name}"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


AnySource = Embedded | TextFiles | Tfds
"""Every kind of source, for the command line."""
