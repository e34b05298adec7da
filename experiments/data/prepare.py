"""Source -> tokenizer -> fixed-length rows on disk, made once. Here is what holds for all data, and packed text.

The rows depend on the documents' texts, the tokenizer's settings, the row length, the held-out share and the seed, and
on nothing else: whether a document is held out, and where it comes in the shuffled order, is decided by a hash of its
text and the seed. So adding, renaming or moving files does not move other documents between the splits, and exact
duplicates fall on one side. A folder's name holds a fingerprint of all of it.

A folder is written under another name and renamed when whole, so what bears the final name is complete. Two processes
that prepare the same thing both do the work; the first to finish is believed and the other takes its result.

Memory holds the largest document, a few million tokens and under 100 bytes a document, however large the corpus is.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from experiments.data import pieces
from experiments.data import tokenizer as tokenizers
from experiments.data.prepared import Metadata, Prepared, SplitCounts, load
from experiments.data.sequences import Sequences
from experiments.data.sources import Contents, Embedded, Hasher, Source, TextFiles, TextSource, Tfds
from experiments.data.tokenizer import Tokenizer, TokenizerConfig

_FORMAT = 1  # raise it when the same configuration would give other rows
_CHARACTERS = 1 << 20  # of text tokenised at once
_TOKENS = 1 << 22  # of rows written at once
_SAMPLE = 1 << 14  # characters taken together when sampling text for the tokenizer
_RACY_NS = 2_000_000_000  # a file younger than this may change again without its times changing

AnySource = Embedded | TextFiles | Sequences | Tfds
"""Every kind of source of text."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share done of it, from 0 to 1."""


class Preparable(Protocol):
    """What `prepare` asks of a configuration: a source, and how it becomes rows.

    Attributes:
        source: where the data comes from.
        length: columns of a row, less one.
        held_out: share kept for evaluation.
        seed: decides what is held out, and the order.
    """

    source: Any
    length: int
    held_out: float
    seed: int

    @property
    def title(self) -> str:
        """How folders of such rows are called, before their fingerprint."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, besides the source's contents."""

    def make(self, contents: Contents, folder: Path, progress: Progress) -> dict[str, Any]:
        """Writes `train.npy`, `held_out.npy` and maybe a tokenizer; returns its own fields of the metadata."""


def check_share(held_out: float) -> None:
    """Raises ValueError unless it is a share."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share between 0 and 1, not {held_out}")


def fingerprint(config: Preparable, contents: Contents) -> str:
    """16 hexadecimal digits of a hash of everything that decides the rows made from these contents."""
    identity = {"format": _FORMAT, "contents": contents.sha256} | config.identity()
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


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


def prepare(
    config: Preparable, root: str | os.PathLike[str], *, progress: Progress = lambda what, share: None
) -> Prepared:
    """Makes the rows in a folder below `root`, or opens them where they are there already.

    Args:
        config: what to make.
        root: folder of prepared data; made if it is not there.
        progress: is told what goes on.

    Raises:
        ValueError: if the data is unusable, or too little for one row of each split.
        FileNotFoundError: if the source names no files.
        OSError: if `root` cannot be written.
    """
    root = Path(root)
    contents = _contents(config.source, root, progress)
    stands_for = fingerprint(config, contents)
    folder = root / f"{config.title}-{stands_for}"
    if folder.exists():
        return load(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        prefix = f".partial-{socket.gethostname()}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(dir=root, prefix=prefix, ignore_cleanup_errors=True) as temporary:
            partial = Path(temporary, folder.name)
            partial.mkdir()
            metadata = Metadata(
                fingerprint=stands_for,
                source=str(config.source),
                contents_sha256=contents.sha256,
                length=config.length,
                held_out_share=config.held_out,
                seed=config.seed,
                versions={"python": platform.python_version(), "numpy": np.__version__},
                **config.make(contents, partial, progress),
            )
            (partial / "metadata.json").write_text(json.dumps(asdict(metadata), indent=1) + "\n")
            _publish(partial, folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise OSError(f"cannot write prepared rows in {root}: {error}") from error
    return load(folder)


def _contents(source: Source, root: Path, progress: Progress) -> Contents:
    """The source's contents; from a note in `root` where the files are those that were read then."""
    stamp, newest = source.stamp()
    note = root / ".contents" / f"{stamp}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Contents(**json.loads(note.read_bytes()))
    progress("reading", 0.0)
    started = time.time_ns()
    contents = source.contents()
    if newest + _RACY_NS < started and source.stamp()[0] == stamp:
        with contextlib.suppress(OSError):  # only a note: reading again is slower, not wrong
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary = note.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(contents._asdict()))
            os.replace(temporary, note)
    return contents


def _remove_abandoned(root: Path) -> None:
    """Removes what killed processes of this host left half-made."""
    for path in root.glob(f".partial-{socket.gethostname()}-*"):
        try:
            os.kill(int(path.name.removeprefix(f".partial-{socket.gethostname()}-").split("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OSError):
            continue


def _publish(partial: Path, folder: Path) -> None:
    """Gives a whole folder its name, unless another process was first."""
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise


class Fate(NamedTuple):
    """What the hash of a document's text and the seed decide: its split, its place, its place in samples."""

    held_out: bool
    place: int
    digest: bytes


def fate(data: bytes, config: Preparable) -> Fate:
    """That of a document, or of the part of an example that equal ones share."""
    text = hashlib.sha256(data).digest()
    digest = hashlib.sha256(text + str(config.seed).encode()).digest()
    split, place = (int.from_bytes(digest[start : start + 8], "little") for start in (0, 8))
    return Fate(split < config.held_out * 2**64, place, digest)


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


def described(config: TokenizerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What metadata says of a tokenizer."""
    return {"tokenizer": config.identity(), "tokenizer_sha256": tokenizer.sha256, "vocab": tokenizer.vocab}


def _dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    return np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32


def make_tokenizer(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], sample: Callable[[], list[str]]
) -> Tokenizer:
    """The tokenizer of a configuration.

    Args:
        config: which one.
        texts: asked for all texts, held-out ones too, where the vocabulary is what they are made of.
        sample: asked for training text where there is a tokenizer to train.
    """
    if config.kind.symbols:
        tokenizer = tokenizers.SymbolTokenizer.of(config.kind, texts())
    elif config.kind is tokenizers.Kind.BYTES:
        tokenizer = tokenizers.ByteTokenizer()
    elif config.kind is tokenizers.Kind.FILE:
        tokenizer = tokenizers.load(config.path)
    else:
        tokenizer = pieces.train(sample(), kind=config.kind, vocab=config.vocab)
    return tokenizer.reserve(config.extra) if config.extra else tokenizer


def _sample(config: DataConfig) -> list[str]:
    """A sample of the training documents."""
    decided = ((document.text, fate(document.text.encode(), config)) for document in config.source.documents())
    texts = ((text, one.digest) for text, one in decided if not one.held_out)
    return sample(texts, config.tokenizer.sample_bytes)


def sample(texts: Iterable[tuple[str, bytes]], most: int) -> list[str]:
    """The chunks of texts whose hash, with the digest beside each text, is smallest, up to so many bytes."""
    heap: list[tuple[int, int, str]] = []  # the largest hash on top
    size = 0
    for text, digest in texts:
        for start in range(0, len(text), _SAMPLE):
            chunk = text[start : start + _SAMPLE]
            key = hashlib.sha256(digest + start.to_bytes(8, "little")).digest()
            cost = len(chunk.encode())
            heapq.heappush(heap, (-int.from_bytes(key[:8], "little"), cost, chunk))
            size += cost
            while size - heap[0][1] >= most:
                size -= heapq.heappop(heap)[1]
    return [chunk for _, _, chunk in sorted(heap)]


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


def write_array(path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int], dtype: np.dtype) -> str:
    """Writes the first entries of blocks as a `.npy` of that shape, and returns their hash."""
    sha, left = hashlib.sha256(), shape[0] * shape[1]
    # Written as a file, not through a memory map, so that a full disk is an error and not a crash.
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            data = block.reshape(-1)[:left].tobytes()
            left -= min(left, block.size)
            file.write(data)
            sha.update(data)
    return sha.hexdigest()


def _gather(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    """The documents' tokens in the order given, several documents at a time."""
    group = np.cumsum(ends - starts) // _TOKENS
    for chosen in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(group)) + 1):
        yield np.concatenate([tokens[start:end] for start, end in zip(starts[chosen], ends[chosen], strict=True)])
