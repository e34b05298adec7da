"""Examples that are a row each: labelled texts, pairs of texts, labelled images, images with captions.

As with packed text, whether an example is held out and where it comes in the shuffled order is decided by a hash and
the seed: of the text, of the first text of a pair, of the pixels. So equal texts or images, whatever their labels, fall
on one side of the split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.images import AnyImages
from experiments.data.pieces import described, make_tokenizer, sample
from experiments.data.prepare import Fate, Preparable, Progress, check_share, fate, write_array
from experiments.data.prepared import Layout, SplitCounts
from experiments.data.sources import Contents, Hasher
from experiments.data.tables import AnyTable, Entry
from experiments.data.tokenizer import Tokenizer, TokenizerConfig

_TOGETHER = 4_096  # entries tokenised, or rows written, at once


@dataclass(frozen=True)
class LabelledText:
    """Texts with a class each. A row is the class and the tokens, cut or filled up to `length`.

    Raises:
        ValueError: for a length or share out of range.
    """

    source: AnyTable
    """Where they come from: the first column is the text, the second the class."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How text becomes tokens."""

    length: int = 128
    """Most tokens of a text, BOS and EOS included."""

    held_out: float = 0.05
    """Share kept for evaluation."""

    seed: int = 0
    """Decides which are held out and their order."""

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ValueError(f"length must be at least 3 tokens, BOS and EOS included, not {self.length}")
        check_share(self.held_out)

    @property
    def title(self) -> str:
        """How folders of such rows are called, before their fingerprint."""
        return f"labelled-{self.tokenizer.kind.value}-length{self.length}"

    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, besides the source's contents."""
        return _identity(self, length=self.length, tokenizer=self.tokenizer.identity())

    def make(self, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
        """Tokenises, cuts, shuffles."""
        classes = _classes(entry.second for entry in self.source.entries())
        numbers = {name: number for number, name in enumerate(classes)}
        texts = ((entry.first.encode(), (entry.first,)) for entry in self.source.entries())
        tokenizer = _tokenizer(self, folder, progress, texts)

        def rows(entries: list[Entry]) -> Iterator[_Row]:
            for entry, tokens in zip(entries, tokenizer.encode_all([e.first for e in entries]), strict=True):
                text, room = entry.first.encode(), self.length - 2
                read = [tokenizer.bos, *tokens[:room], tokenizer.eos]
                values = [numbers[entry.second], *read, *[tokenizer.pad] * (self.length - len(read))]
                yield _Row(fate(text, self), values, len(text), len(tokens) + 2, max(0, len(tokens) - room))

        counts = _write(self, _entry_rows(self, rows), contents, folder, progress, _dtype(tokenizer, classes))
        return counts | described(self.tokenizer, tokenizer) | {"layout": Layout(classes=classes)}


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts, such as translations. A row is `inputs` columns for the first and `targets` for the second.

    Each ends in EOS and is filled up; pairs that do not fit are left out, and counted.

    Raises:
        ValueError: for a length or share out of range.
    """

    source: AnyTable
    """Where they come from: the first column is what is given, the second what is to be said."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How text becomes tokens, on both sides alike."""

    inputs: int = 64
    """Most tokens of the first text, EOS included."""

    targets: int = 64
    """Most tokens of the second text, EOS included."""

    held_out: float = 0.05
    """Share kept for evaluation."""

    seed: int = 0
    """Decides which are held out and their order."""

    def __post_init__(self) -> None:
        if min(self.inputs, self.targets) < 2:
            raise ValueError(f"a pair needs 2 tokens or more on each side, not {self.inputs} and {self.targets}")
        check_share(self.held_out)

    @property
    def length(self) -> int:
        """Columns of a row, less one."""
        return self.inputs + self.targets - 1

    @property
    def title(self) -> str:
        """How folders of such rows are called, before their fingerprint."""
        return f"pairs-{self.tokenizer.kind.value}-{self.inputs}to{self.targets}"

    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, besides the source's contents."""
        return _identity(self, inputs=self.inputs, targets=self.targets, tokenizer=self.tokenizer.identity())

    def make(self, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
        """Tokenises, leaves out what is too long, shuffles."""
        texts = ((entry.first.encode(), (entry.first, entry.second)) for entry in self.source.entries())
        tokenizer = _tokenizer(self, folder, progress, texts)

        def rows(entries: list[Entry]) -> Iterator[_Row]:
            sides = [tokenizer.encode_all([entry[column] for entry in entries]) for column in (1, 2)]
            for entry, first, second in zip(entries, *sides, strict=True):
                text, total = entry.first.encode(), len(first) + len(second) + 2
                size = len(text) + len(entry.second.encode())
                ended = [
                    [*tokens, tokenizer.eos, *[tokenizer.pad] * (columns - len(tokens) - 1)]
                    for tokens, columns in ((first, self.inputs), (second, self.targets))
                ]
                values = ended[0] + ended[1] if len(ended[0] + ended[1]) == self.length + 1 else None
                yield _Row(fate(text, self), values, size, total, 0 if values else total)

        counts = _write(self, _entry_rows(self, rows), contents, folder, progress, _dtype(tokenizer, ()))
        return counts | described(self.tokenizer, tokenizer) | {"layout": Layout(inputs=self.inputs)}


@dataclass(frozen=True)
class LabelledImages:
    """Images with a class each. A row is the class and the pixels, from the top left, channel by channel.

    Raises:
        ValueError: for a shape or share out of range.
    """

    source: AnyImages
    """Where they come from."""

    shape: tuple[int, ...]
    """Height, width and channels of every image."""

    held_out: float = 0.05
    """Share kept for evaluation."""

    seed: int = 0
    """Decides which are held out and their order."""

    def __post_init__(self) -> None:
        _check_shape(self.shape)
        check_share(self.held_out)

    @property
    def length(self) -> int:
        """Columns of a row, less one: pixels times channels."""
        return math.prod(self.shape)

    @property
    def title(self) -> str:
        """How folders of such rows are called, before their fingerprint."""
        return f"images-{'x'.join(map(str, self.shape))}"

    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, besides the source's contents."""
        return _identity(self, shape=list(self.shape))

    def make(self, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
        """Lays out and shuffles."""
        _check_images(self)
        classes = _classes(image.label for image in self.source.images())
        numbers = {name: number for number, name in enumerate(classes)}

        def rows(hasher: Hasher) -> Iterator[_Row]:
            for image in self.source.images():
                hasher.add(image.name, image.record())
                pixels = image.pixels.tobytes()
                values = [numbers[image.label], *image.pixels.reshape(-1).tolist()]
                yield _Row(fate(pixels, self), values, len(pixels), len(pixels), 0)

        dtype = np.uint8 if len(classes) <= 1 << 8 else np.uint16 if len(classes) <= 1 << 16 else np.uint32
        counts = _write(self, rows, contents, folder, progress, dtype)
        layout = Layout(classes=classes, image=self.shape)
        return counts | {"tokenizer": {}, "tokenizer_sha256": "", "vocab": 0, "layout": layout}


@dataclass(frozen=True)
class CaptionedImages:
    """Images with a caption each. A row is the pixels, and `targets` columns for the caption.

    The caption ends in EOS and is cut or filled up.

    Raises:
        ValueError: for a shape, length or share out of range.
    """

    source: AnyImages
    """Where they come from; what is the class of a labelled image is the caption here."""

    shape: tuple[int, ...]
    """Height, width and channels of every image."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How captions become tokens."""

    targets: int = 32
    """Most tokens of a caption, EOS included."""

    held_out: float = 0.05
    """Share kept for evaluation."""

    seed: int = 0
    """Decides which are held out and their order."""

    def __post_init__(self) -> None:
        _check_shape(self.shape)
        if self.targets < 2:
            raise ValueError(f"a caption needs 2 tokens or more, not {self.targets}")
        check_share(self.held_out)

    @property
    def length(self) -> int:
        """Columns of a row, less one."""
        return math.prod(self.shape) + self.targets - 1

    @property
    def title(self) -> str:
        """How folders of such rows are called, before their fingerprint."""
        return f"captions-{self.tokenizer.kind.value}-{'x'.join(map(str, self.shape))}to{self.targets}"

    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, besides the source's contents."""
        return _identity(self, shape=list(self.shape), targets=self.targets, tokenizer=self.tokenizer.identity())

    def make(self, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
        """Lays out, tokenises, shuffles."""
        _check_images(self)
        captions = ((image.pixels.tobytes(), (image.label,)) for image in self.source.images())
        tokenizer = _tokenizer(self, folder, progress, captions)

        def rows(hasher: Hasher) -> Iterator[_Row]:
            images = self.source.images()
            while block := list(itertools.islice(images, _TOGETHER)):
                for image, tokens in zip(block, tokenizer.encode_all([each.label for each in block]), strict=True):
                    hasher.add(image.name, image.record())
                    room, pixels = self.targets - 1, image.pixels.tobytes()
                    caption = [*tokens[:room], tokenizer.eos, *[tokenizer.pad] * (room - len(tokens))]
                    lost, size = max(0, len(tokens) - room), len(image.label.encode())
                    yield _Row(fate(pixels, self), [*pixels, *caption], size, len(tokens) + 1, lost)

        counts = _write(self, rows, contents, folder, progress, _dtype(tokenizer, ()))
        layout = Layout(image=self.shape, inputs=math.prod(self.shape))
        return counts | described(self.tokenizer, tokenizer) | {"layout": layout}


AnyExamples = LabelledText | TextPairs | LabelledImages | CaptionedImages
"""Every kind of examples that are a row each."""


class _Row(NamedTuple):
    """An example as it lies on disk; no values if it does not fit. Bytes, tokens, and how many of them are lost."""

    fate: Fate
    values: list[int] | None
    bytes: int
    tokens: int
    dropped: int


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"an image's shape is height, width and channels, not {shape}")


def _check_images(config: LabelledImages | CaptionedImages) -> None:
    """Raises ValueError if the images are of another shape than they should be."""
    if (found := config.source.shape()) != config.shape:
        raise ValueError(f"images are {found[0]} x {found[1]} x {found[2]} and should be {config.shape}")


def _identity(config: Preparable, **settings: Any) -> dict[str, Any]:
    return {"kind": type(config).__name__, "held_out": config.held_out, "seed": config.seed} | settings


def _classes(labels: Iterable[str]) -> tuple[str, ...]:
    """The names of all classes: in order of their numbers where they are numbers, else of the alphabet."""
    names = set(labels)
    if len(names) < 2:
        raise ValueError(f"the source has {len(names)} classes, which leave nothing to tell; 2 are needed")
    numbered = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbered else None))


def _dtype(tokenizer: Tokenizer, classes: tuple[str, ...]) -> type[np.unsignedinteger]:
    return np.uint16 if max(tokenizer.vocab, len(classes)) <= 1 << 16 else np.uint32


def _tokenizer(
    config: Any, folder: Path, progress: Progress, examples: Iterable[tuple[bytes, tuple[str, ...]]]
) -> Tokenizer:
    """The tokenizer, trained on the texts of training examples where it is to be; beside them is what decides that."""

    def training() -> Iterator[tuple[str, bytes]]:
        for data, texts in examples:
            decided = fate(data, config)
            if not decided.held_out:
                yield from ((text, decided.digest + bytes([number])) for number, text in enumerate(texts))

    progress("training the tokenizer", 0.0)
    every = lambda: (text for _, texts in examples for text in texts)  # noqa: E731
    tokenizer = make_tokenizer(config.tokenizer, every, lambda: sample(training(), config.tokenizer.sample_bytes))
    tokenizer.save(folder / "tokenizer.model")
    return tokenizer


def _entry_rows(config: Any, rows: Any) -> Any:
    """`rows(entries)` over all entries of the source, many at a time, each counted by a hasher."""

    def run(hasher: Hasher) -> Iterator[_Row]:
        entries = config.source.entries()
        while block := list(itertools.islice(entries, _TOGETHER)):
            for entry in block:
                hasher.add(entry.name, f"{entry.first}\t{entry.second}".encode())
            yield from rows(block)

    return run


def _write(
    config: Preparable, rows: Any, contents: Contents, folder: Path, progress: Progress, dtype: type
) -> dict[str, Any]:
    """Writes the rows of both splits in shuffled order.

    Raises:
        ValueError: if a split is empty, or the files are no longer those that were hashed.
    """
    spool, width, hasher = folder / "spool", config.length + 1, Hasher()
    facts = []  # of each example: held out, place, bytes, tokens, dropped, row in the spool or -1
    written = done = 0
    with open(spool, "wb") as file:
        for row in rows(hasher):
            facts.append((*row.fate[:2], row.bytes, row.tokens, row.dropped, -1 if row.values is None else written))
            if row.values is not None:
                file.write(np.asarray(row.values, dtype).tobytes())
                written += 1
            done += row.bytes
            if len(facts) % _TOGETHER == 0:
                progress("writing rows", min(1.0, done / max(contents.bytes, 1)))
    if hasher.contents() != contents:
        raise ValueError("the source's files changed while they were read; run again")
    if not written:
        raise ValueError(f"none of the {len(facts):,} examples of the source fits a row; allow longer ones")
    stored = np.memmap(spool, dtype, mode="r", shape=(written, width)).view(np.ndarray)
    counts = {}
    for name, held_out in (("held_out", True), ("train", False)):
        chosen = sorted((fact for fact in facts if fact[0] == held_out), key=lambda fact: fact[1])
        order = np.asarray([fact[-1] for fact in chosen if fact[-1] >= 0], np.int64)
        if not len(order):
            what = "held out" if held_out else "left to train on"
            raise ValueError(f"no example of {len(facts):,} is {what}; give more examples, or another held-out share")
        blocks = (stored[order[start : start + _TOGETHER]] for start in range(0, len(order), _TOGETHER))
        sha = write_array(folder / f"{name}.npy", blocks, (len(order), width), np.dtype(dtype))
        sizes = [sum(fact[column] for fact in chosen) for column in (2, 3, 4)]
        counts[name] = SplitCounts(len(chosen), sizes[0], sizes[1], len(order), sizes[2], sha)
    del stored
    spool.unlink()
    return counts
