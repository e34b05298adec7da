"""A folder of prepared rows: what it holds, and how to open it. Needs no library that made it but the tokenizer's."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.configuration import from_json
from experiments.data import tokenizer as tokenizers
from experiments.data.batches import Rows
from experiments.data.sources import nearest_file
from experiments.data.tokenizer import Tokenizer

TOKENIZER = "tokenizer.model"
"""File of the tokenizer that made the rows."""


@dataclass(frozen=True)
class SplitCounts:
    """How much one split holds. `tokens` counts BOS and EOS of each document; `dropped` of them filled no row."""

    documents: int
    bytes: int
    tokens: int
    rows: int
    dropped: int
    sha256: str
    """Of the rows."""


@dataclass(frozen=True)
class Layout:
    """What the columns of a row are where they are not packed text.

    Attributes:
        classes: names of the classes, whose number the first column holds; empty where there are none.
        image: height, width and channels of the image that the columns hold, row by row; None for tokens.
        inputs: columns that hold the first of a pair, which may be an image; 0 where there is none.
    """

    classes: tuple[str, ...] = ()
    image: tuple[int, ...] | None = None
    inputs: int = 0


@dataclass(frozen=True)
class Metadata:
    """What was read and what was made of it, as stored in `metadata.json`.

    Images have no tokenizer: its hash is empty, and the vocabulary 0.
    """

    fingerprint: str
    source: str
    contents_sha256: str
    tokenizer: dict[str, Any]
    tokenizer_sha256: str
    vocab: int
    length: int
    held_out_share: float
    seed: int
    train: SplitCounts
    held_out: SplitCounts
    versions: dict[str, str]
    layout: Layout = Layout()


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared rows.

    Attributes:
        folder: where it is.
        metadata: what it holds.
    """

    folder: Path
    metadata: Metadata

    @functools.cached_property
    def train(self) -> Rows:
        """The training rows."""
        return Rows(self.folder / "train.npy")

    @functools.cached_property
    def held_out(self) -> Rows:
        """The held-out rows."""
        return Rows(self.folder / "held_out.npy")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the rows. Raises ValueError for rows of images."""
        if not self.metadata.tokenizer_sha256:
            raise ValueError(f"{self.folder} holds rows of images, which no tokenizer made")
        return tokenizers.load(self.folder / TOKENIZER)

    @property
    def fingerprint(self) -> str:
        """Stands for the rows in a run's identity: equal fingerprints mean equal rows."""
        return self.metadata.fingerprint

    @property
    def digests(self) -> tuple[str, str, str]:
        """SHA-256 of the tokenizer, of the training rows and of the held-out ones, as they were made here."""
        return self.metadata.tokenizer_sha256, self.metadata.train.sha256, self.metadata.held_out.sha256


def load(folder: str | os.PathLike[str]) -> Prepared:
    """Opens a folder that `prepare` made.

    Raises:
        FileNotFoundError: if it is none.
        ValueError: if it is damaged, or of another format.
    """
    folder = Path(folder)
    path = folder / "metadata.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no prepared data (no metadata.json){nearest_file(folder)}")
    try:
        stored = json.loads(path.read_bytes())
        splits = {name: SplitCounts(**stored.pop(name)) for name in ("train", "held_out")}
        layout = from_json(Layout, stored.pop("layout", {}), "layout")
        prepared = Prepared(folder, Metadata(**stored, **splits, layout=layout))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not of this version ({error}); delete the folder and prepare again") from error
    for rows, counts in ((prepared.train, splits["train"]), (prepared.held_out, splits["held_out"])):
        if (len(rows), rows.length) != (counts.rows, prepared.metadata.length):
            raise ValueError(
                f"{rows.path} holds {len(rows)} rows of {rows.length} tokens, not the {counts.rows} of "
                f"{prepared.metadata.length} that metadata.json says; delete the folder and prepare again"
            )
    return prepared
