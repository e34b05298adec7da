"""Folders in buckets: `gs://bucket/folder`, and every other store that fsspec knows, where a folder on disk could be.

Programs need files on disk, and machines that are taken away lose theirs. So a folder in a bucket has a working copy on
disk, of which the bucket's is the one that counts: the lead process pulls it when it begins, and pushes what has
changed before every checkpoint, at a stop or a failure, and at the end.

Checkpoints are written and read by all processes straight where they belong, if that is one of Google's buckets. Orbax
has no driver for others: there a run of one process keeps them in its working copy too, and pushes those that are
complete.

Nothing locks a folder in a bucket: `launch.lock` keeps apart the processes of one machine that share a working copy.
Who trains one run on two machines at once has both write it, and may see one end in an error.
"""

import contextlib
import difflib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINTS, LOGS = "checkpoints", "logs"
LAST = ("_CHECKPOINT_METADATA", "result.json")
"""Files without which a checkpoint, or a run, is not complete; pushed after all others, in this order."""


@dataclass(frozen=True)
class Place:
    """A folder for output.

    Attributes:
        folder: where files are read and written.
        url: the folder in a bucket that it is a working copy of; empty if it is no copy.
    """

    folder: Path
    url: str = ""

    @classmethod
    def of(cls, text: str | Path) -> "Place":
        """The place that a user names: a path, or the URL of a folder in a bucket.

        Raises:
            ValueError: if a URL has no bucket, its kind of storage is unknown, or the package for it is missing.
        """
        if not (named := kind_and_path(text)):
            return cls(Path(text))
        kind, path = named
        filesystem(url := f"{kind}://{path}")
        return cls(Path.home() / ".cache" / "scaling-experiments" / "buckets" / kind / path, url)

    @property
    def direct(self) -> bool:
        """Whether all processes write checkpoints straight there; otherwise they are in the working copy too."""
        return self.url.startswith("gs://")

    def __truediv__(self, name: str) -> "Place":
        return Place(self.folder / name, self.url and f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url or str(self.folder)


def kind_and_path(text: str | Path) -> tuple[str, str] | None:
    """The kind of storage that a URL names, and the rest of it; None for a path. Needs no package, asks nobody.

    Raises:
        ValueError: if there is no bucket in it, or no storage of that kind.
    """
    if not (found := re.match(r"([A-Za-z][\w+.-]+):(/+|$)([^/]?.*)", str(text))):
        return None
    import fsspec

    kind, slashes, path = found.groups()
    if slashes != "//" or not path:
        raise ValueError(f"a folder in a bucket is written {kind}://bucket/folder, not '{text}'")
    if {".", ".."} & set(path.split("/")):  # the working copy would be elsewhere
        raise ValueError(f"'{text}' has '.' or '..' in it; name the folder in the bucket as it is")
    if kind not in (known := fsspec.available_protocols()):
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "buckets are written gs://bucket/folder or s3://bucket/folder"
        raise ValueError(f"no kind of storage is called '{kind}'; {hint}")
    return "gs" if kind == "gcs" else kind, path.rstrip("/")


def filesystem(url: str) -> Any:
    """The fsspec file system of a URL of a known kind.

    Raises:
        ValueError: if the package for it is missing.
        OSError: if its credentials are of no use.
    """
    import fsspec
    from fsspec.registry import known_implementations

    kind = url.partition("://")[0]
    try:
        protocols = fsspec.get_filesystem_class(kind).protocol
    except ImportError as error:
        ours = "pip install 'scaling-experiments[gcs]'"
        what = ours if kind == "gs" else known_implementations[kind]["err"]
        raise ValueError(f"{url} needs a package that is not installed: {what}") from error
    # A listing that is remembered lacks what other clients write: TensorStore in this process, and other processes.
    for protocol in (protocols,) if isinstance(protocols, str) else protocols:
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs with a traceback is raised as well
    try:
        return fsspec.filesystem(kind)
    except Exception as error:
        raise OSError(f"{url} cannot be opened: {type(error).__name__}: {_one_line(error)}") from error


class Mirror:
    """Copies files between a working folder and the folder in a bucket that counts.

    Hidden files, such as locks, and checkpoints that are still being written stay where they are.

    Args:
        place: the two folders.
        left_out: names of folders that stay where they are, at any depth.
    """

    def __init__(self, place: Place, *, left_out: Iterable[str] = (CHECKPOINTS, LOGS)) -> None:
        self.place, self._left_out = place, frozenset(left_out)
        self._store = filesystem(place.url)
        self._root = self._store._strip_protocol(place.url)
        self._copied: dict[str, tuple[int, int] | None] = {}  # what the bucket has: size and time of the file on disk

    def pull(self) -> None:
        """Makes the working folder what the bucket holds: files that it lacks are deleted.

        Raises:
            OSError: if it cannot be read.
        """
        with self._told("read"):
            paths = [path for path in self._store.find(self._root) if path.startswith(f"{self._root}/")]
            found = {name for path in paths if self._is_copied(name := path[len(self._root) + 1 :])}
            wanted = sorted(name for name in found if (step := _step(name)) is None or f"{step}/{LAST[0]}" in found)
            if wanted:
                self._store.get(*self._ends(wanted)[::-1])
        for name in self._here().keys() - set(wanted):
            (self.place.folder / name).unlink()
        self._copied = dict.fromkeys(found) | self._here()  # what was half pushed is deleted by the next push

    def push(self) -> None:
        """Makes the bucket hold what the working folder does, as far as that has changed since it was copied.

        Raises:
            OSError: if it cannot be written.
        """
        here = self._here()
        changed = [name for name, stamp in here.items() if self._copied.get(name) != stamp]
        with self._told("written"):
            for last in (None, *LAST):
                if names := [name for name in changed if _last(name) == last]:
                    self._store.put(*self._ends(names))
            # First what makes a checkpoint complete, lest a part of it pass for the whole.
            for name in sorted(self._copied.keys() - here.keys(), key=lambda name: _last(name) is None):
                with contextlib.suppress(FileNotFoundError):
                    self._store.rm_file(f"{self._root}/{name}")
        self._copied = dict(here)

    def _ends(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Where files are on disk, and in the bucket."""
        return [str(self.place.folder / name) for name in names], [f"{self._root}/{name}" for name in names]

    def _here(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.place.folder.rglob("*"):
            name = path.relative_to(self.place.folder).as_posix()
            if self._is_copied(name) and path.is_file():
                found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
        return found

    def _is_copied(self, name: str) -> bool:
        return not any(
            not part or part.startswith(".") or ".orbax-checkpoint-tmp" in part or part in self._left_out
            for part in name.split("/")
        )

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns whatever a client of a store raises into one clear line."""
        try:
            yield
        except Exception as error:
            bucket = self.place.url.partition("://")[2].partition("/")[0]
            said = _one_line(error)
            if isinstance(error, FileNotFoundError):
                reason = f"there is no bucket '{bucket}', or these credentials do not see it"
            elif isinstance(error, PermissionError) or re.search(_DENIED, said):
                reason = f"permission denied ({said})"
            else:
                reason = f"{type(error).__name__}: {said}"
            raise OSError(f"{self.place.url} cannot be {what}: {reason}") from error


_DENIED = "Forbidden|Unauthorized|Access ?Denied|Anonymous caller"


def _one_line(error: Exception, most: int = 200) -> str:
    return " ".join(str(error).split())[:most]


def _last(name: str) -> str | None:
    """The name of a file without which something is not complete; None for others."""
    return base if (base := name.rpartition("/")[2]) in LAST else None


def _step(name: str) -> str | None:
    """The folder of the checkpoint that a file is of; None if it is of none."""
    found = re.match(rf"(?:.*/)?{CHECKPOINTS}/\d+(?=/)", name)
    return found and found[0]
