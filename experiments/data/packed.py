"""Packed text: documents tokenised, shuffled, and concatenated into rows of one length.

Memory holds the largest document, a few million tokens and under 100 bytes a document, however large the corpus is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from experiments.data.pieces import described, make_tokenizer, sample
from experiments.data.prepare import Progress, check_share, fate, write_array
from experiments.data.prepared import SplitCounts
from experiments.data.sequences import Sequences
from experiments.data.sources import Contents, Embedded, Hasher, TextFiles, TextSource, Tfds
from experiments.data.tokenizer import Tokenizer, TokenizerConfig

_CHARACTERS = 1 << 20  # of text tokenised at once
_TOKENS = 1 << 22  # of rows written at once

AnySource = Embedded | TextFiles | Sequences | Tfds
"""Every kind of source of text."""


@dataclass(frozen=True)
class DataConfig:
    """What text to train on, and how it becomes rows of tokens.

    Raises:
        ValueError: for a length, share or seed out of range.
    """

    source: AnySource = field(default_factory=Embedded)
    """Where the text comes from."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How text becomes tokens."""

    length: int = 256
    """Tokens a row trains on."""

    held_out: float = 0.05
    """Share of the documents kept for evaluation."""

    seed: int = 0
    """Decides which documents are held out and their order."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1 token, not {self.length}")
        check_share(self.held_out)

    @property
    def title(self) -> str:
        """How folders of such rows are called, before their fingerprint."""
        return f"{self.tokenizer.kind.value}-length{self.length}"

    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, besides the source's contents."""
        shares = {"length": self.length, "held_out": self.held_out, "seed": self.seed}
        return shares | {"tokenizer": self.tokenizer.identity()}

    def make(self, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
        """Tokenises, shuffles, packs."""
        return _make(self, contents, folder, progress)


def _make(config: DataConfig, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
    """Fills `folder`."""
    progress("training the tokenizer", 0.0)
    texts = lambda: (document.text for document in config.source.documents())  # noqa: E731
    tokenizer = make_tokenizer(config.tokenizer, texts, lambda: _sample(config))
    tokenizer.save(folder / "tokenizer.model")
    spool = folder / "spool"
    with open(spool, "wb") as file:
        table = _tokenize(config, tokenizer, contents, file, progress)
    tokens = np.memmap(spool, _dtype(tokenizer), mode="r").view(np.ndarray) if spool.stat().st_size else np.zeros(0)
    counts = {}
    for name, held_out in (("held_out", True), ("train", False)):
        progress(f"writing {name} rows", 0.0)
        counts[name] = _write_rows(folder / f"{name}.npy", tokens, table, held_out, config, contents)
    del tokens
    spool.unlink()
    return counts | described(config.tokenizer, tokenizer)


def _dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    return np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32


def _sample(config: DataConfig) -> list[str]:
    """A sample of the training documents."""
    decided = ((document.text, fate(document.text.encode(), config)) for document in config.source.documents())
    texts = ((text, one.digest) for text, one in decided if not one.held_out)
    return sample(texts, config.tokenizer.sample_bytes)


class _Table(NamedTuple):
    """One entry a document, in source order."""

    held_out: np.ndarray  # bool
    place: np.ndarray  # uint64, the order of the shuffled documents
    bytes: np.ndarray  # int64
    tokens: np.ndarray  # int64, with BOS and EOS


def _tokenize(
    config: DataConfig, tokenizer: Tokenizer, contents: Contents, file: BinaryIO, progress: Progress
) -> _Table:
    """Writes the tokens of all documents in source order.

    Raises:
        ValueError: if the tokenizer loses text, or the files are no longer those that were hashed.
    """
    hasher = Hasher()
    blocks: list[_Table] = []
    done = 0
    for names, texts in _blocks(config.source):
        progress("tokenising", done / max(contents.bytes, 1))
        encoded = [text.encode() for text in texts]
        fates = [fate(data, config) for data in encoded]
        for name, data in zip(names, encoded, strict=True):
            hasher.add(name, data)
        ids = tokenizer.encode_all(texts)
        counts = np.asarray([len(tokens) + 2 for tokens in ids], np.int64)
        flat = np.fromiter(
            itertools.chain.from_iterable((tokenizer.bos, *tokens, tokenizer.eos) for tokens in ids),
            _dtype(tokenizer),
            count=int(counts.sum()),
        )
        sizes = np.asarray([len(data) for data in encoded], np.int64)
        spelled = np.add.reduceat(tokenizer.bytes_per_token[flat], np.cumsum(counts) - counts)
        if (lossy := np.flatnonzero(spelled != sizes)).size:
            raise ValueError(
                f"the tokenizer loses text of document {names[lossy[0]]} (it has no bytes for unknown characters, or "
                "normalises); losses could not be compared per byte. Use another model"
            )
        file.write(flat.tobytes())
        done += int(sizes.sum())
        held_out = np.asarray([one.held_out for one in fates], bool)
        blocks.append(_Table(held_out, np.asarray([one.place for one in fates], np.uint64), sizes, counts))
    if hasher.contents() != contents:
        raise ValueError("the source's files changed while they were read; run again")
    if not blocks:
        raise ValueError("the source holds no text")
    return _Table(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _blocks(source: TextSource) -> Iterator[tuple[list[str], list[str]]]:
    """Names and texts of documents, gathered to a few MB."""
    names: list[str] = []
    texts: list[str] = []
    size = 0
    for document in source.documents():
        names.append(document.name)
        texts.append(document.text)
        size += len(document.text)
        if size >= _CHARACTERS:
            yield names, texts
            names, texts, size = [], [], 0
    if names:
        yield names, texts


def _write_rows(
    path: Path, tokens: np.ndarray, table: _Table, held_out: bool, config: DataConfig, contents: Contents
) -> SplitCounts:
    """Concatenates a split's documents in shuffled order and cuts them into rows.

    Raises:
        ValueError: if they do not fill one row.
    """
    chosen = np.flatnonzero(table.held_out == held_out)
    chosen = chosen[np.argsort(table.place[chosen], kind="stable")]  # equal places are equal documents
    ends = np.cumsum(table.tokens)
    width = config.length + 1
    total = int(table.tokens[chosen].sum())
    n_rows = total // width
    if not n_rows:
        name, more = ("held-out", "larger") if held_out else ("training", "smaller")
        raise ValueError(
            f"{len(chosen)} of {contents.documents} documents are {name}, with {total} tokens, less than one row of "
            f"{width}; give more text or more documents (lines or paragraphs instead of files), a {more} held-out "
            "share, or a smaller length"
        )
    sha = write_array(path, _gather(tokens, (ends - table.tokens)[chosen], ends[chosen]), (n_rows, width), tokens.dtype)
    return SplitCounts(
        documents=len(chosen),
        bytes=int(table.bytes[chosen].sum()),
        tokens=total,
        rows=n_rows,
        dropped=total - n_rows * width,
        sha256=sha,
    )


def _gather(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    """The documents' tokens in the order given, several documents at a time."""
    group = np.cumsum(ends - starts) // _TOKENS
    for chosen in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(group)) + 1):
        yield np.concatenate([tokens[start:end] for start, end in zip(starts[chosen], ends[chosen], strict=True)])
