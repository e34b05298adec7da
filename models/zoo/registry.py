"""The lists of families and published sizes, which the files of this folder add to."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from models.config import Architecture
from models.zoo.base import SETTINGS

Family = Callable[..., Architecture]

FAMILIES: dict[str, Family] = {}


def family_of(name: str, **defaults: Any) -> Callable[[Family], Family]:
    """Makes a family of a function from settings to an architecture.

    The family checks the names of settings and fills in defaults. Keyword arguments that the function names are
    settings of this family beside the common `SETTINGS`.

    Args:
        name: what the family is called in tables and on the command line.
        **defaults: its choices, `vocab` and `length` among them unless they must be given.
    """

    def register(build: Family) -> Family:
        own = [entry.name for entry in inspect.signature(build).parameters.values() if entry.kind is entry.KEYWORD_ONLY]
        known = dict.fromkeys((*SETTINGS, *own))

        @functools.wraps(build)
        def made(**chosen: Any) -> Architecture:
            for setting in chosen:
                if setting not in known:
                    raise ValueError(f"{name}: there is no setting '{setting}'; {_hint(setting, known)}")
            settings = defaults | chosen
            required = ("width", "depth", "heads", "vocab", "length")
            if missing := [setting for setting in required if setting not in settings]:
                raise ValueError(f"{name}: {', '.join(missing)} must be given")
            return build(family=name, **settings)

        FAMILIES[name] = made
        return made

    return register


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published size of a family.

    Attributes:
        architecture: the model.
        params: its parameters as published (counted in the released weights), to check `architecture` against.
        source: who published it.
    """

    architecture: Architecture
    params: int
    source: str


PUBLISHED: dict[str, Published] = {}


def publish(source: str, sizes: Mapping[str, tuple[Architecture, int]]) -> None:
    """Lists published sizes: the architecture and the parameters of each, by name."""
    for name, (architecture, params) in sizes.items():
        PUBLISHED[name] = Published(architecture=architecture, params=params, source=source)


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: if there is none; the message offers the nearest name.
    """
    if name not in FAMILIES:
        raise ValueError(f"no family of architectures is called '{name}'; {_hint(name, FAMILIES)}")
    return FAMILIES[name]


def make(name: str, **chosen: Any) -> Architecture:
    """A model of the family called `name`: `width`, `depth`, `heads`, `vocab`, `length` and other settings.

    Raises:
        ValueError: for a family or a setting that does not exist (the nearest name is offered), for a missing one, and
            for settings that do not fit together.
    """
    return family(name)(**chosen)


def get(name: str) -> Architecture:
    """The published size of that name.

    Raises:
        ValueError: if there is none; the message offers the nearest name, or the sizes of a family named.
    """
    if name not in PUBLISHED:
        sizes = [size for size, entry in PUBLISHED.items() if entry.architecture.family == name]
        hint = f"'{name}' is a family, with sizes {', '.join(sizes)}" if sizes else _hint(name, PUBLISHED | FAMILIES)
        raise ValueError(f"no published architecture is called '{name}'; {hint}")
    return PUBLISHED[name].architecture


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
