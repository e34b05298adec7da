"""Frozen dataclasses to JSON and back: what a run is, on disk and between processes.

Where a field may hold one of several dataclasses, the JSON says which in the key `kind`.
"""

import dataclasses
import difflib
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any


def to_json(value: Any, *, identity: bool = False) -> Any:
    """A configuration as plain JSON values.

    Args:
        value: dataclasses, enums, paths, tuples and plain values.
        identity: leave out what identities leave out, fields with metadata `ADDED` that hold their default; else
            every field is written.
    """
    if dataclasses.is_dataclass(value):
        fields = [
            field
            for field in dataclasses.fields(value)
            if not (identity and field.metadata.get("added") and getattr(value, field.name) == field.default)
        ]
        stored = {field.name: to_json(getattr(value, field.name), identity=identity) for field in fields}
        return {"kind": type(value).__name__} | stored
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_json(item, identity=identity) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration holds {value!r} of type {type(value).__name__}, which JSON cannot")


def from_json(kind: Any, stored: Any, where: str = "configuration") -> Any:
    """The configuration of type `kind` that `to_json` stored.

    Args:
        kind: a dataclass, enum, tuple, union or plain type.
        stored: JSON values.
        where: path of the value, for messages.

    Raises:
        ValueError: for a key that is not a field (the nearest is named), one that is missing, or a value of another
            type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(arguments[0], stored, where)
    if origin in (types.UnionType, typing.Union):
        return _from_union(arguments, stored, where)
    if dataclasses.is_dataclass(kind):
        return _from_fields(kind, stored, where)
    if origin is tuple:
        if not isinstance(stored, list):
            raise ValueError(f"{where}: want a list, not {stored!r}")
        return tuple(from_json(arguments[0], item, f"{where}.{index}") for index, item in enumerate(stored))
    if isinstance(kind, type) and issubclass(kind, Enum):
        values = [member.value for member in kind]
        if stored not in values:
            raise ValueError(f"{where}: {stored!r} is not one of {', '.join(map(repr, values))}")
        return kind(stored)
    if isinstance(kind, type) and issubclass(kind, Path) and isinstance(stored, str):
        return kind(stored)
    if kind is float and isinstance(stored, int) and not isinstance(stored, bool):
        return float(stored)
    if not isinstance(stored, kind) or (isinstance(stored, bool) and kind is not bool):
        raise ValueError(f"{where}: want {kind.__name__}, not {stored!r}")
    return stored


def _from_union(kinds: tuple, stored: Any, where: str) -> Any:
    if stored is None and types.NoneType in kinds:
        return None
    named = {kind.__name__: kind for kind in kinds if dataclasses.is_dataclass(kind)}
    if named and isinstance(stored, dict):
        if stored.get("kind") not in named:
            raise ValueError(f"{where}: kind {stored.get('kind')!r} is not one of {', '.join(named)}")
        return _from_fields(named[stored["kind"]], stored, where)
    problems = []
    for kind in kinds:
        if kind is not types.NoneType and not dataclasses.is_dataclass(kind):
            try:
                return from_json(kind, stored, where)
            except ValueError as problem:
                problems.append(str(problem))
    raise ValueError(problems[0] if problems else f"{where}: cannot be {stored!r}")


def _from_fields(kind: type, stored: Any, where: str) -> Any:
    if not isinstance(stored, dict):
        raise ValueError(f"{where}: want the settings of {kind.__name__}, not {stored!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    known = {field.name: field for field in dataclasses.fields(kind)}
    if "kind" not in known and stored.get("kind", kind.__name__) != kind.__name__:
        raise ValueError(f"{where}: want the settings of {kind.__name__}, not of {stored['kind']!r}")
    for key in stored:
        if key not in known and key != "kind":
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{where}: {kind.__name__} has no setting '{key}'; {hint}")
    for name, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in stored:
            raise ValueError(f"{where}: {kind.__name__} needs '{name}'")
    values = {key: from_json(hints[key], value, f"{where}.{key}") for key, value in stored.items() if key in known}
    return kind(**values)
