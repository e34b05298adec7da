"""Source -> tokenizer -> fixed-length rows on disk, made once: what holds for all data.

The rows depend on the documents' texts, the tokenizer's settings, the row length, the held-out share and the seed, and
on nothing else: whether a document is held out, and where it comes in the shuffled order, is decided by a hash of its
text and the seed. So adding, renaming or moving files does not move other documents between the splits, and exact
duplicates fall on one side. A folder's name holds a fingerprint of all of it.

A folder is written under another name and renamed when whole, so what bears the final name is complete. Two processes
that prepare the same thing both do the work; the first to finish is believed and the other takes its result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.data.prepared import Metadata, Prepared, load
from experiments.data.sources import Contents, Source

_FORMAT = 1  # raise it when the same configuration would give other rows
_RACY_NS = 2_000_000_000  # a file younger than this may change again without its times changing

Progress = Callable[[str, float], None]
"""Called with what is being done and the share done of it, from 0 to 1."""


class Preparable(Protocol):
    """What `prepare` asks of a configuration: a source, and how it becomes rows.

    Attributes:
        source: where the data comes from.
        length: columns of a row, less one.
        held_out: share kept for evaluation.
        seed: decides what is held out, and the order.
    """

    source: Any
    length: int
    held_out: float
    seed: int

    @property
    def title(self) -> str:
        """How folders of such rows are called, before their fingerprint."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, besides the source's contents."""

    def make(self, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
        """Writes `train.npy`, `held_out.npy` and maybe a tokenizer; returns its own fields of the metadata."""


def check_share(held_out: float) -> None:
    """Raises ValueError unless it is a share."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share between 0 and 1, not {held_out}")


def fingerprint(config: Preparable, contents: Contents) -> str:
    """16 hexadecimal digits of a hash of everything that decides the rows made from these contents."""
    identity = {"format": _FORMAT, "contents": contents.sha256} | config.identity()
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    config: Preparable, root: str | os.PathLike[str], *, progress: Progress = lambda what, share: None
) -> Prepared:
    """Makes the rows in a folder below `root`, or opens them where they are there already.

    Args:
        config: what to make.
        root: folder of prepared data; made if it is not there.
        progress: is told what goes on.

    Raises:
        ValueError: if the data is unusable, or too little for one row of each split.
        FileNotFoundError: if the source names no files.
        OSError: if `root` cannot be written.
    """
    root = Path(root)
    contents = _contents(config.source, root, progress)
    stands_for = fingerprint(config, contents)
    folder = root / f"{config.title}-{stands_for}"
    if folder.exists():
        return load(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        prefix = f".partial-{socket.gethostname()}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(dir=root, prefix=prefix, ignore_cleanup_errors=True) as temporary:
            partial = Path(temporary, folder.name)
            partial.mkdir()
            metadata = Metadata(
                fingerprint=stands_for,
                source=str(config.source),
                contents_sha256=contents.sha256,
                length=config.length,
                held_out_share=config.held_out,
                seed=config.seed,
                versions={"python": platform.python_version(), "numpy": np.__version__},
                **config.make(contents, partial, progress),
            )
            (partial / "metadata.json").write_text(json.dumps(asdict(metadata), indent=1) + "\n")
            _publish(partial, folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise OSError(f"cannot write prepared rows in {root}: {error}") from error
    return load(folder)


def _contents(source: Source, root: Path, progress: Progress) -> Contents:
    """The source's contents; from a note in `root` where the files are those that were read then."""
    stamp, newest = source.stamp()
    note = root / ".contents" / f"{stamp}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Contents(**json.loads(note.read_bytes()))
    progress("reading", 0.0)
    started = time.time_ns()
    contents = source.contents()
    if newest + _RACY_NS < started and source.stamp()[0] == stamp:
        with contextlib.suppress(OSError):  # only a note: reading again is slower, not wrong
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary = note.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(contents._asdict()))
            os.replace(temporary, note)
    return contents


def _remove_abandoned(root: Path) -> None:
    """Removes what killed processes of this host left half-made."""
    for path in root.glob(f".partial-{socket.gethostname()}-*"):
        try:
            os.kill(int(path.name.removeprefix(f".partial-{socket.gethostname()}-").split("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OSError):
            continue


def _publish(partial: Path, folder: Path) -> None:
    """Gives a whole folder its name, unless another process was first."""
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise


class Fate(NamedTuple):
    """What the hash of a document's text and the seed decide: its split, its place, its place in samples."""

    held_out: bool
    place: int
    digest: bytes


def fate(data: bytes, config: Preparable) -> Fate:
    """That of a document, or of the part of an example that equal ones share."""
    text = hashlib.sha256(data).digest()
    digest = hashlib.sha256(text + str(config.seed).encode()).digest()
    split, place = (int.from_bytes(digest[start : start + 8], "little") for start in (0, 8))
    return Fate(split < config.held_out * 2**64, place, digest)


def write_array(path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int], dtype: np.dtype) -> str:
    """Writes the first entries of blocks as a `.npy` of that shape, and returns their hash."""
    sha, left = hashlib.sha256(), shape[0] * shape[1]
    # Written as a file, not through a memory map, so that a full disk is an error and not a crash.
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            data = block.reshape(-1)[:left].tobytes()
            left -= min(left, block.size)
            file.write(data)
            sha.update(data)
    return sha.hexdigest()
