"""Checkpoints that are verified: save without stopping the training, restore on any mesh, notice every flipped bit.

Orbax writes and reads the arrays (each process its own shards, atomically: a save that was killed leaves a temporary
folder on disk, and in a bucket one without the file that is written last; neither counts). It notices a truncated file,
but not a flipped bit in array data, so every checkpoint also carries a digest of each leaf, computed on the devices and
independent of the mesh; `Checkpoints.restore` recomputes it and steps back to the previous checkpoint when anything is
wrong.

On disk a state is a flat dictionary from key path (`model.blocks.0.attention.query`) to array, so no Python class
enters the format and a renamed class does not orphan old checkpoints. Typed PRNG keys are refused; store
`jax.random.key_data(key)`.
"""

import contextlib
import difflib
import gc
import json
import logging
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from experiments.buckets import filesystem
from experiments.digest import describe
from parallel.distributed import everywhere, from_lead, is_lead

if TYPE_CHECKING:
    from etils import epath

_ITEM = "state"
_COMMITTED = "commit_success.txt"  # written last by Orbax into a folder of a bucket, where nothing can be renamed


class Extent(Enum):
    """How much of a checkpoint is wanted: every leaf of it, or those that are named, the others being left unread."""

    WHOLE = "whole"
    PART = "part"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
        step: the step under which the state was saved.
        state: the structure of the abstract state that was asked for, filled with arrays placed as its shardings say.
        metadata: the dictionary given to `Checkpoints.save`.
    """

    step: int
    state: PyTree
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the newest `keep` good ones, in one folder.

    Use it as a context manager, or call `close` at the end: a save goes on in the background after `save` returned.
    Constructing one touches neither the folder nor Orbax (whose import takes a second or two).
    In a run of many processes, every process makes the same calls, and what one cannot read none does.

    Args:
        folder: where the checkpoints are, one sub-folder a step; made by the first save. A path, or gs://bucket/folder.
        keep: how many to keep. The default of 2 leaves one to go back to when the newest turns out damaged.

    Raises:
        ValueError: `keep` is less than 1, or the folder is in a bucket that Orbax cannot write to.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, not {keep}")
        self.folder = _path(folder)
        self._keep = keep
        self._writer = None  # the Orbax manager that saves; made by the first save
        self._saving: int | None = None  # the step of the save that may still be running
        self._damaged: list[int] = []  # steps that restore passed over, to be deleted by the next save

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> tuple[int, ...]:
        """Steps of the complete checkpoints in the folder, oldest first; only `restore` can say which are undamaged."""
        # As the lead sees it: a shared file system may show a new folder to one machine later than to another.
        return tuple(from_lead(sorted(self._complete()) if is_lead() else None))

    def _complete(self) -> Iterator[int]:
        # On disk a folder is renamed to its plain number after everything in it is written; temporary names are not
        # numbers. In a bucket it has its name from the start, and a file that says so when it is complete.
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            if entry.name.isdecimal() and (not self._in_bucket or (entry / _COMMITTED).exists()):
                yield int(entry.name)

    @property
    def _in_bucket(self) -> bool:
        return not isinstance(self.folder, Path)

    def save(self, step: int, state: PyTree[Array], *, metadata: dict[str, Any]) -> None:
        """Save `state` under `step`; returns once the arrays are copied, while the files are still being written.

        The caller may overwrite or donate the buffers of `state` as soon as this returns. Waits first for the previous
        save.

        Args:
            step: greater than every step already in the folder.
            state: any pytree of JAX or NumPy arrays or plain numbers (which come back as arrays).
            metadata: anything that JSON can hold; comes back from `restore` unchanged.

        Raises:
            ValueError: the step is not greater than the newest one, a leaf is not an array, or metadata is not JSON.
            OSError: this save or the previous one could not be written (disk full, no permission, ...).
        """
        self.wait()
        leaves = {name: _array(name, leaf) for name, leaf in _named_leaves(state).items()}
        try:
            custom_metadata = _seal({"user": metadata, "leaves": describe(leaves)})
        except TypeError as error:
            raise ValueError(f"checkpoint metadata must be JSON: {error}") from error
        with self._writing(step):
            writer = self._open_writer()
            for damaged in self._damaged:
                writer.delete(damaged)
            self._damaged.clear()
        newest = max(self.steps(), default=None)
        if newest is not None and step <= newest:
            raise ValueError(
                f"cannot save step {step}: {self.folder} already holds step {newest}; "
                "restore from it, or use another folder"
            )
        ocp = _orbax()
        with self._writing(step):
            arguments = ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(leaves)})
            writer.save(step, args=arguments, custom_metadata=custom_metadata, force=True)
        self._saving = step

    def restore(
        self, abstract_state: PyTree[jax.ShapeDtypeStruct], *, extent: Extent = Extent.WHOLE
    ) -> Restored | None:
        """Restore the newest good checkpoint, or None if the folder has no checkpoint at all.

        A checkpoint that is unreadable, or whose arrays differ by as much as one bit from those saved, is passed over
        with a warning that says where and why. Reading changes nothing on disk; the next save deletes what was damaged.

        Args:
            abstract_state: the wanted structure; its leaves have `shape`, `dtype` and `sharding`. The mesh may be
                another than the one saved from. A leaf whose sharding is None goes to the default device.
            extent: whether leaves that are saved and not wanted are a mistake, or left unread.

        Raises:
            ValueError: the checkpoint is of another model: a leaf is missing, unexpected, or of another shape or dtype.
            OSError: there are checkpoints, but none is good. (Starting over silently would waste what was trained.)
        """
        self.wait()
        wanted = _named_leaves(abstract_state)
        structure = jax.tree.structure(abstract_state)
        damaged: list[int] = []
        with _unheard():
            for step in reversed(self.steps()):
                try:
                    metadata, leaves = self._read(step, wanted, extent)
                except _DamagedError as error:
                    damaged.append(step)
                    place = self.folder / str(step)
                    warnings.warn(f"checkpoint {place} is damaged and passed over: {error}", stacklevel=2)
                else:
                    self._damaged = damaged
                    return Restored(step=step, state=jax.tree.unflatten(structure, leaves.values()), metadata=metadata)
                gc.collect()
        if damaged:
            raise OSError(
                f"none of the {len(damaged)} checkpoints in {self.folder} is good; delete the folder to start over"
            )
        return None

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            OSError: it could not be written.
        """
        if self._saving is not None:
            step, self._saving = self._saving, None
            with self._writing(step):
                self._writer.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and release the threads that wrote it. Closing twice does nothing.

        Raises:
            OSError: the last save could not be written.
        """
        try:
            self.wait()
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()

    def _open_writer(self):
        if self._writer is None:
            ocp = _orbax()
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, cleanup_tmp_directories=True)
            # One process: a folder a leaf, so that damage can be traced to a file. Many, or a bucket: OCDBT, which
            # gathers shards of all leaves into few files, each of which costs time. Reading tells them apart by itself.
            gathered = self._in_bucket or jax.process_count() > 1
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=gathered, use_zarr3=True)
            self._writer = ocp.CheckpointManager(self.folder, options=options, item_handlers={_ITEM: handler})
        return self._writer

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turn whatever Orbax and TensorStore raise while writing into one clear line."""
        try:
            yield
        except Exception as error:
            # The Orbax manager counts a failed step as kept and would delete a good one for it: start afresh next time.
            writer, self._writer = self._writer, None
            if writer is not None:
                with contextlib.suppress(Exception):
                    writer.close()
            where = f"the checkpoint of step {step} in {self.folder}"
            raise OSError(f"could not write {where}: {_one_line(error)}") from error

    def _read(
        self, step: int, wanted: dict[str, jax.ShapeDtypeStruct], extent: Extent
    ) -> tuple[dict[str, Any], dict[str, Shaped[Array, "..."]]]:
        """The metadata and arrays of one step, in the order of `wanted`."""
        ocp = _orbax()
        with contextlib.closing(
            ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(read_only=True),
                item_handlers={_ITEM: ocp.PyTreeCheckpointHandler()},
            )
        ) as reader:
            with _damage("its metadata file _CHECKPOINT_METADATA is missing or damaged"):
                contents = _unseal(reader.metadata(step).custom_metadata)
            self._check_same_model(step, contents["leaves"], wanted, extent)
            placed = {name: _placed(leaf) for name, leaf in wanted.items()}
            with _damage("its arrays are unreadable"):
                arguments = ocp.args.PyTreeRestore(
                    item=placed,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(placed),
                    partial_restore=extent is Extent.PART,
                )
                found = reader.restore(step, args=ocp.args.Composite(**{_ITEM: arguments}))[_ITEM]
        found = {name: found[name] for name in wanted}
        described = describe(found)
        flipped = [name for name in wanted if described[name] != contents["leaves"][name]]
        if flipped:
            files = [self.folder / str(step) / _ITEM / name for name in flipped]
            places = [str(file) if file.exists() else repr(name) for file, name in zip(files, flipped, strict=True)]
            raise _DamagedError(f"the bits of {_enumerate(places)} are not those that were saved")
        return contents["user"], found

    def _check_same_model(
        self, step: int, saved: dict[str, list], wanted: dict[str, jax.ShapeDtypeStruct], extent: Extent
    ) -> None:
        where = f"checkpoint {self.folder / str(step)} is of another model"
        for name, leaf in wanted.items():
            if name not in saved:
                unclaimed = [other for other in saved if other not in wanted]
                near = difflib.get_close_matches(name, unclaimed, n=1)
                hint = f" (it has {near[0]!r})" if near else ""
                raise ValueError(f"{where}: it has no leaf {name!r}{hint}, wanted {_form(leaf.dtype, leaf.shape)}")
            dtype, shape, _ = saved[name]
            if (dtype, tuple(shape)) != (str(leaf.dtype), tuple(leaf.shape)):
                raise ValueError(
                    f"{where}: leaf {name!r} is {_form(dtype, shape)}, wanted {_form(leaf.dtype, leaf.shape)}"
                )
        for name, (dtype, shape, _) in saved.items():
            if name not in wanted and extent is Extent.WHOLE:
                raise ValueError(f"{where}: its leaf {name!r}, {_form(dtype, shape)}, is not in the wanted state")


class _DamagedError(Exception):
    """A checkpoint cannot be used; the message says why."""


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """Damage where anything is raised within, in this process or in another one of the run."""
    # Orbax and TensorStore report a missing, truncated or scrambled file by whatever their parsers happen to raise.
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if not everywhere(failed is None):
        raise _DamagedError(f"{what}: {_one_line(failed) if failed else 'in another process'}") from failed


def _seal(contents: dict[str, Any]) -> dict[str, Any]:
    """Metadata as text with its checksum, so that a flipped bit in it is noticed like one in an array."""
    text = json.dumps(contents)
    return {"text": text, "crc32": zlib.crc32(text.encode())}


def _unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    if zlib.crc32(sealed["text"].encode()) != sealed["crc32"]:
        raise ValueError("its bits are not those that were saved")
    return json.loads(sealed["text"])


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # A Flax variable shows as one more key, `value`; without it, variables and bare arrays share a format.
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value") or "state"
        if name in leaves:
            raise ValueError(f"two leaves of the state have the same name {name!r}; rename a key")
        leaves[name] = leaf
    return leaves


def _path(folder: str | Path) -> "Path | epath.Path":
    kind, in_bucket, _ = str(folder).partition("://")
    if not in_bucket:
        return Path(folder).absolute()
    if kind != "gs":
        raise ValueError(
            f"{folder}: checkpoints are written to disk, or straight to a bucket of Google's, as gs://bucket/folder"
        )
    filesystem(str(folder))  # which says what is missing, and makes the clients that Orbax uses see each other's files
    from etils import epath

    return epath.Path(folder)


def _array(name: str, leaf: Any) -> Array:
    found = None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        found = "a typed PRNG key (store its jax.random.key_data)"
    elif not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
        found = type(leaf).__name__
    elif np.size(leaf) == 0:
        found = f"an array without elements, {_form(leaf.dtype, leaf.shape)}"
    elif isinstance(leaf, np.ndarray | np.generic) and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        found = f"a NumPy {leaf.dtype}, which JAX would narrow"
    if found:
        raise ValueError(f"leaf {name!r} of the state cannot be saved: wanted an array or a number, found {found}")
    return jnp.asarray(leaf)


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if leaf.sharding is not None:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def _form(dtype: Any, shape: Sequence[int]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _enumerate(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more leaves"


def _one_line(error: BaseException, most: int = 400) -> str:
    # The innermost cause names the file; what Orbax wraps around it, and TensorStore adds to it, is pages of settings.
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = " ".join(str(error).partition("[tensorstore_spec")[0].split())
    return f"{type(error).__name__}: {text if len(text) <= most else text[:most] + ' …'}"


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Silence what cannot be raised: Orbax abandons reads when one fails, each of which would print a traceback."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _orbax():
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    if _drop_orbax_records not in logger.filters:
        logger.addFilter(_drop_orbax_records)
    return ocp


def _drop_orbax_records(record: logging.LogRecord) -> bool:
    """Keep Orbax's notes, and its log of errors that are raised anyway, off the terminal; other records pass."""
    return "orbax" not in record.pathname
