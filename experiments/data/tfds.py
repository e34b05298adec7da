"""Datasets of TensorFlow Datasets as random-access sources (ArrayRecord), read without TensorFlow."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EXAMPLES = 256  # read at once


def files(name: str, data_dir: str) -> list[Path]:
    """The files of a dataset, which is prepared (and downloaded) where it is not there.

    Args:
        name: of the dataset, with config and version where wanted.
        data_dir: folder of prepared datasets; empty for TFDS' own default.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: for an unknown dataset, or one that is neither here nor to be downloaded.
    """
    return sorted(path for path in Path(_builder(name, data_dir).data_dir).rglob("*") if path.is_file())


def examples(
    name: str, split: str, fields: tuple[str, ...], data_dir: str, *, label: str = ""
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Name and fields of every example, in the order of the data source.

    Args:
        name: of the dataset.
        split: split, or a slice of it.
        fields: the features to read.
        data_dir: folder of prepared datasets; empty for TFDS' own default.
        label: the one of `fields` whose numbers are read as the names of classes.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: for an unknown dataset, split or field, or one that cannot be read.
    """
    builder = _builder(name, data_dir)
    splits, features = list(builder.info.splits), builder.info.features
    for part in re.findall(r"(?:^|\+)\s*([\w.-]+)", split) or [split]:
        if part not in splits:
            raise ValueError(f"TFDS dataset '{name}' has no split '{part}'{_nearest(part, splits)}")
    for field in fields:
        if field not in features:
            raise ValueError(f"TFDS dataset '{name}' has no field '{field}'{_nearest(field, list(features))}")
    try:
        source = builder.as_data_source(split=split)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"TFDS cannot read split '{split}' of '{name}': {_first_line(error)}") from error
    names = {label: getattr(features[label], "names", None)} if label else {}
    for start in range(0, len(source), _EXAMPLES):
        indices = range(start, min(start + _EXAMPLES, len(source)))
        for index, example in zip(indices, source.__getitems__(indices), strict=True):
            values = ((example[field], names.get(field)) for field in fields)
            yield f"{name}/{split}/{index}", tuple(known[value] if known else value for value, known in values)


def text(value: Any, field: str, name: str) -> str:
    """A value that is text.

    Raises:
        ValueError: if it is none, or not UTF-8.
    """
    if not isinstance(value, bytes | str):
        raise ValueError(f"field '{field}' of TFDS dataset '{name}' is not text but {type(value).__name__}")
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"field '{field}' of TFDS dataset '{name}' is not UTF-8: {error}") from error


def _builder(name: str, data_dir: str) -> Any:
    """The dataset's builder, prepared."""
    import tensorflow_datasets as tfds

    folder = os.path.expanduser(data_dir) or None
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(f"TFDS data_dir {folder} does not exist")
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        here = sorted(path.name for path in Path(folder).iterdir() if path.is_dir()) if folder else []
        hint = _nearest(name, here + tfds.list_builders(with_community_datasets=False))
        raise ValueError(f"TFDS has no dataset '{name}'" + hint) from error
    except Exception as error:  # an unknown config or version: each its own class in TFDS
        raise ValueError(f"TFDS cannot open '{name}': {_first_line(error)}") from error
    if not builder.is_prepared():
        try:
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
            builder.download_and_prepare()
        except Exception as error:  # whatever a download can raise
            raise ValueError(
                f"TFDS dataset '{name}' is not prepared in {builder.data_dir} "
                f"and could not be made: {_first_line(error)}"
            ) from error
    return builder


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if 0 < len(known) < 20 else ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
