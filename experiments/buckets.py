"""Folders in buckets: `gs://bucket/folder`, and every other store that fsspec knows, where a folder on disk could be.

Programs need files on disk, and machines that are taken away lose theirs. So a folder in a bucket has a working copy on
disk, of which the bucket's is the one that counts: the lead process pulls it when it begins, and pushes what has
changed before every checkpoint, at a stop or a failure, and at the end.

Checkpoints are written and read by all processes straight where they belong, if that is one of Google's buckets. Orbax
has no driver for others: there a run of one process keeps them in its working copy too, and pushes those that are
complete.

What is only read has no working copy, which may be in use: `copied` copies the few files that are asked for to a folder
that lasts as long as the process.

Nothing locks a folder in a bucket: `launch.lock` keeps apart the processes of one machine that share a working copy.
Who trains one run on two machines at once has both write it, and may see one end in an error.
"""

import atexit
import contextlib
import difflib
import fnmatch
import logging
import re
import shutil
import tempfile
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
        url: the folder in a bucket that it is a copy of; empty if it is no copy.
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

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Within it errors about files of a copy name the folder in the bucket."""
        try:
            yield
        except (ValueError, OSError) as error:
            if not self.url or str(self.folder) not in str(error):
                raise
            kind = next(kind for kind in (FileNotFoundError, OSError, ValueError) if isinstance(error, kind))
            raise kind(str(error).replace(str(self.folder), self.url)) from error

    def __truediv__(self, name: str) -> "Place":
        return Place(self.folder / name, self.url and f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url or str(self.folder)


def kind_and_path(text: str | Path) -> tuple[str, str] | None:
    """The kind of storage that a URL names, and the rest of it; None for a path. Needs no package, asks nobody.

    Raises:
        ValueError: if there is no bucket in it, or no storage of that kind.
    """
    if re.match(r"(gs|gcs|s3)//\w", str(text)):
        raise ValueError(f"a folder in a bucket is written gs://bucket/folder, not '{text}'")
    if not (found := re.match(r"([A-Za-z][\w+.-]+):(/+|$)([^/]?.*)", str(text))):
        return None
    import fsspec

    kind, slashes, path = found.groups()
    if kind in ("file", "local"):
        raise ValueError(f"'{text}' is on this machine, and named by its path: {slashes[:1]}{path}")
    if kind in ("http", "https"):
        raise ValueError(f"'{text}' is a page, and no folder in a bucket, which is written gs://bucket/folder")
    if slashes != "//" or not path:
        raise ValueError(f"a folder in a bucket is written {kind}://bucket/folder, not '{text}'")
    if {".", ".."} & set(path.split("/")):  # the working copy would be elsewhere
        raise ValueError(f"'{text}' has '.' or '..' in it; name the folder in the bucket as it is")
    if kind not in (known := fsspec.available_protocols()):
        near = difflib.get_close_matches(kind.lower(), known, n=1)
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


def on_disk(text: str | Path, what: str) -> Path:
    """The path that a user names, where what is read or written is on disk.

    Args:
        text: what was given.
        what: the option that it was given for, as "--output".

    Raises:
        ValueError: if it is the URL of a bucket, or nearly.
    """
    if named := kind_and_path(text):
        raise ValueError(f"{what} is a path on this machine, and {'://'.join(named)} is in a bucket")
    return Path(text)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def copied(text: str | Path, *patterns: str) -> Place:
    """A folder to read: itself where it is on disk, else a copy of those files in it that match one of the patterns.

    Args:
        text: a path, or the URL of a folder in a bucket.
        patterns: names of files, as "run.json", "*.safetensors" or "generator/config.json".

    Raises:
        ValueError: as `Place.of`.
        FileNotFoundError: if there is no such folder; the message names the nearest.
        OSError: if a bucket cannot be read.
    """
    if not (url := Place.of(text).url):
        return Place(Path(text))
    store = filesystem(url)
    root = store._strip_protocol(url)
    with told(url, "read"):
        entries = {"": _listed(store, root)}
        if not entries[""]:
            raise _Absent(_nearest(store, url))
        for each in entries[""]:
            if each["type"] == "directory" and any(pattern.startswith(f"{_base(each)}/") for pattern in patterns):
                entries[f"{_base(each)}/"] = _listed(store, each["name"])
        names = [above + _base(each) for above, found in entries.items() for each in found if each["type"] == "file"]
        wanted = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        place = Place(_lasting(), url)
        if wanted:
            store.get([f"{root}/{name}" for name in wanted], [str(place.folder / name) for name in wanted])
    return place


def copied_checkpoints(place: Place) -> Iterator[Path]:
    """The complete checkpoints below a folder in a bucket, newest first: each copied when it is asked for.

    Args:
        place: a folder in a bucket that has checkpoints which Orbax cannot read where they are.

    Yields:
        A folder of checkpoints that holds one, and lasts as long as this process.

    Raises:
        OSError: if the bucket cannot be read.
    """
    store, url = filesystem(place.url), f"{place.url}/{CHECKPOINTS}"
    root = store._strip_protocol(url)
    with told(url, "read"):
        found = [_base(each) for each in _listed(store, root)]
        steps = sorted((name for name in found if name.isdecimal()), key=int, reverse=True)
        steps = [step for step in steps if store.exists(f"{root}/{step}/{LAST[0]}")]
    for step in steps:
        folder = _lasting()  # Orbax may still be reading it when it has found it damaged
        with told(url, "read"):
            names = [path[len(root) + 1 :] for path in store.find(f"{root}/{step}")]
            store.get([f"{root}/{name}" for name in names], [str(folder / name) for name in names])
        yield folder


def _lasting() -> Path:
    """A new folder, which goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="scaling-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class _Absent(FileNotFoundError):
    """There is no such folder; the message is for the user."""


def _listed(store: Any, root: str) -> list[dict[str, Any]]:
    """What is in a folder; nothing if there is none."""
    try:
        return [each for each in store.ls(root, detail=True) if each["name"].rstrip("/") != root.rstrip("/")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _base(entry: dict[str, Any]) -> str:
    return entry["name"].rstrip("/").rpartition("/")[2]


def _nearest(store: Any, url: str) -> str:
    """What to say where there is no such folder: the nearest that there is, beside it or beside one that it is in."""
    above, _, name = url.rpartition("/")
    while not above.endswith("/"):
        if names := [_base(each) for each in _listed(store, store._strip_protocol(above))]:
            if name in names:
                return f"{url} is a file, and not a folder"
            near = difflib.get_close_matches(name, names, n=1)
            return f"there is no folder {url}" + (f"; did you mean '{above}/{near[0]}'?" if near else "")
        above, _, name = above.rpartition("/")
    return f"{url} cannot be read: {_no_bucket(url)}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


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
        with told(self.place.url, "read"):
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
        with told(self.place.url, "written"):
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
def told(url: str, what: str) -> Iterator[None]:
    """Turns whatever a client of a store raises into one clear line.

    Args:
        url: what it is about.
        what: "read" or "written".

    Raises:
        OSError: in place of any other error of a client.
    """
    try:
        yield
    except _Absent:
        raise
    except Exception as error:
        said = _one_line(error)
        if isinstance(error, FileNotFoundError):
            reason = _no_bucket(url)
        elif isinstance(error, PermissionError) or re.search(_DENIED, said):
            reason = f"permission denied ({said})"
        else:
            reason = f"{type(error).__name__}: {said}"
        raise OSError(f"{url} cannot be {what}: {reason}") from error


def _no_bucket(url: str) -> str:
    return f"there is no bucket '{url.partition('://')[2].partition('/')[0]}', or these credentials do not see it"


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
