"""Sequences of symbols, such as music, proteins, moves of a game: files of JSON, each sequence a document of text.

A sequence of numbers or words becomes text with a space behind each, one of characters is text as it is; which of the
two decides the tokenizer that suits it, whose vocabulary is what the sequences are made of. Parts that sound together
are read step by step, one symbol of each part in turn, so that what goes on at one time stands together.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.sources import Document, TextSource, decode, named_files, opened, spelled
from experiments.data.tokenizer import Kind


@dataclass(frozen=True)
class Sequences(TextSource):
    """JSON files, plain or compressed (.gz, .xz): a list of sequences, or (.jsonl) a sequence a line.

    A sequence is a string, a list of numbers or words, or several such lists of equal length: parts that sound
    together. It may be the second of a pair whose first is its name, or stand in an object, under a key.
    """

    paths: tuple[str, ...]
    """Files or patterns such as 'chorales/*.json'."""

    key: str = ""
    """Where sequences are in objects."""

    def files(self) -> list[Path]:
        """The files matched, sorted by name. Raises FileNotFoundError where a pattern matches none."""
        return [path for _, path in named_files(self.paths)]

    @property
    def suited(self) -> Kind:
        """The tokenizer that suits the first sequence.

        Raises:
            ValueError: as of `read`; or if there is none.
        """
        for _, where, entry in self._entries():
            return Kind.CHARACTERS if isinstance(self._sequence(entry, where), str) else Kind.WORDS
        raise ValueError(f"{' '.join(self.paths)}: there are no sequences")

    def read(self) -> Iterator[Document]:
        """A document a sequence, in the order of the files.

        Raises:
            ValueError: for what is no JSON or no sequence; names file and entry.
        """
        for name, where, entry in self._entries():
            yield Document(name, spelled(self._sequence(entry, where), where))

    def _entries(self) -> Iterator[tuple[str, str, Any]]:
        """Stable name, place to name in errors, and value of each entry."""
        for name, path in named_files(self.paths):
            kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".xz")), "")
            if kind not in (".json", ".jsonl"):
                raise ValueError(f"{path} holds no sequences: want .json or .jsonl (also .gz, .xz)")
            with opened(path) as file:
                if kind == ".json":
                    entries = _parsed(decode(file.read(), path), str(path))
                    if not isinstance(entries, list):
                        raise ValueError(f"{path} is no list of sequences but {type(entries).__name__}")
                    yield from ((f"{name}:{n}", f"{path}, entry {n}", each) for n, each in enumerate(entries, start=1))
                else:
                    for number, line in enumerate(file, start=1):
                        if line.strip():
                            where = f"{path}:{number}"
                            yield f"{name}:{number}", where, _parsed(decode(line, where), where)

    def _sequence(self, entry: Any, where: str) -> Any:
        if isinstance(entry, dict):
            if self.key not in entry:
                near = difflib.get_close_matches(self.key, entry, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(entry)}"
                lacking = f"has no key '{self.key}'" if self.key else "is an object, and no key is named"
                raise ValueError(f"{where} {lacking}; {hint}")
            return entry[self.key]
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], list):
            return entry[1]
        return entry


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
