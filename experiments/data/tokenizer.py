"""Text to tokens and back, exactly: `decode(encode(text)) == text`, of pieces and bytes for every Unicode text.

Every token stands for a fixed string of bytes (none for the specials), so a document's tokens name exactly as many
bytes as its UTF-8 form has, and bits per byte compares models across tokenizers.
"""

from __future__ import annotations

import abc
import difflib
import enum
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from models.identity import ADDED

BYTES = 256
SPECIALS = 4  # pad, bos, eos, unk
_SYMBOLS = 1 << 16  # the largest alphabet: beyond it documents are text
_RESERVED = "<reserved_"  # how reserved ids are called in a SentencePiece model, a number and ">" behind it
_SPACE = "\u2581"  # how SentencePiece writes a space inside pieces
# Models of other makers often normalise, or add a space in front: bytes that the text does not have. Protocol buffers
# merge when concatenated, so this ModelProto with `normalizer_spec {precompiled_charsmap: "" add_dummy_prefix: false
# remove_extra_whitespaces: false}` overrules what a model says (field numbers of sentencepiece_model.proto).
_NO_NORMALISATION = b"\x1a\x06\x12\x00\x18\x00\x20\x00"
_CONTROL = b"\x18\x03"  # `type: CONTROL` of a piece of the same file's ModelProto
_PART = 1 << 16  # characters encoded at once: BPE is slower than linear in the length of its input


class Kind(enum.Enum):
    """Which tokenizer."""

    BPE = "bpe"
    """SentencePiece byte-pair encoding trained on the training documents."""
    UNIGRAM = "unigram"
    """SentencePiece unigram model trained on the training documents; ten times slower to train."""
    BYTES = "bytes"
    """UTF-8 bytes; nothing to train, 260 tokens."""
    FILE = "file"
    """An existing SentencePiece model, named by `path`."""
    CHARACTERS = "characters"
    """A token for every character that the documents have: proteins, moves; other text cannot be read."""
    WORDS = "words"
    """A token for every word that the documents have, with the space behind it: notes, states of a game."""

    @property
    def symbols(self) -> bool:
        """Whether the vocabulary is what the documents are made of."""
        return self in (Kind.CHARACTERS, Kind.WORDS)


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer, and how large.

    Raises:
        ValueError: for a vocabulary too small for the 256 bytes, or a path that does not go with the kind.
    """

    kind: Kind = Kind.BPE
    """BPE or unigram trained on the training documents, plain bytes, or an existing model."""

    vocab: int = 1024
    """Size of the vocabulary to train, specials and 256 bytes included; bytes and files have their own."""

    path: str = ""
    """SentencePiece `.model` to use with kind `file`."""

    sample_bytes: int = 4_000_000
    """Bytes of training documents to train on; if there are more, a seeded sample is taken."""

    extra: int = field(default=0, metadata=ADDED)
    """Ids reserved behind the vocabulary for objectives: a mask, sentinels. They stand for no text."""

    def __post_init__(self) -> None:
        least = BYTES + SPECIALS + 20
        if self.trained and self.vocab < least:
            raise ValueError(f"a vocabulary of {self.vocab} is too small: the bytes take {BYTES}; give {least} or more")
        if self.trained and self.sample_bytes < 1:
            raise ValueError(f"sample_bytes must be positive, not {self.sample_bytes}")
        if self.extra < 0:
            raise ValueError(f"extra must be 0 reserved ids or more, not {self.extra}")
        if (self.kind is Kind.FILE) != bool(self.path):
            raise ValueError("a tokenizer's path and its kind 'file' go together: give both or neither")

    @property
    def trained(self) -> bool:
        """Whether there is something to train."""
        return self.kind in (Kind.BPE, Kind.UNIGRAM)

    def identity(self) -> dict[str, Any]:
        """What decides the tokens, apart from the documents: settings and library version, or the model's hash."""
        reserved = {"extra": self.extra} if self.extra else {}
        if self.kind is Kind.BYTES or self.kind.symbols:
            return {"kind": self.kind.value} | reserved
        if self.kind is Kind.FILE:
            return {"kind": self.kind.value, "sha256": load(self.path).sha256} | reserved
        import sentencepiece

        return reserved | {
            "kind": self.kind.value,
            "vocab": self.vocab,
            "sample_bytes": self.sample_bytes,
            "sentencepiece": sentencepiece.__version__,
        }


class Tokenizer(abc.ABC):
    """Encodes text to token ids and back.

    Attributes:
        pieces: the bytes each token stands for; empty for specials.
        model: what `save` writes; it defines the tokenizer.
        extra: how many ids at the end of the vocabulary are reserved: they stand for no text, and none is encoded to
            them.
        pad, bos, eos, unk: ids of the specials. `unk` is never produced where bytes are available.
    """

    pieces: tuple[bytes, ...]
    model: bytes
    extra: int
    pad: int
    bos: int
    eos: int
    unk: int

    @abc.abstractmethod
    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS and EOS; uses every core."""

    @abc.abstractmethod
    def reserve(self, extra: int) -> Tokenizer:
        """The same tokenizer with so many more reserved ids at the end of its vocabulary."""

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Token ids of one text, without BOS and EOS."""
        return np.asarray(self.encode_all([text])[0], np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text that tokens stand for; specials are silent, and bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", errors="replace")

    @property
    def vocab(self) -> int:
        """Number of tokens, specials and reserved ids included."""
        return len(self.pieces)

    @functools.cached_property
    def bytes_per_token(self) -> Int32[np.ndarray, " vocab"]:
        """How many UTF-8 bytes each token stands for; 0 for specials."""
        return np.asarray([len(piece) for piece in self.pieces], np.int32)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the model."""
        return hashlib.sha256(self.model).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a file that `load` reads."""
        Path(path).write_bytes(self.model)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: token `4 + b` is byte `b`.

    Args:
        extra: ids reserved behind the bytes.
    """

    pad, bos, eos, unk = range(SPECIALS)

    def __init__(self, extra: int = 0) -> None:
        self.extra = extra
        self.model = b"bytes %d\n" % extra if extra else b"bytes\n"
        self.pieces = (b"",) * SPECIALS + tuple(bytes([byte]) for byte in range(BYTES)) + (b"",) * extra

    def reserve(self, extra: int) -> ByteTokenizer:
        """Bytes with so many more reserved ids."""
        return ByteTokenizer(self.extra + extra)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [[byte + SPECIALS for byte in text.encode()] for text in texts]


class SymbolTokenizer(Tokenizer):
    """A token for each symbol of an alphabet: characters, or words with the space behind each.

    Args:
        kind: CHARACTERS or WORDS.
        alphabet: the symbols, in the order of their ids; words without the space.
        extra: ids reserved behind them.

    Raises:
        ValueError: for an alphabet that is empty or too large for one.
    """

    pad, bos, eos, unk = range(SPECIALS)

    def __init__(self, kind: Kind, alphabet: Sequence[str], extra: int = 0) -> None:
        if not 0 < len(alphabet) <= _SYMBOLS:
            what = "are no" if not alphabet else f"have {len(alphabet):,} different"
            raise ValueError(f"the documents {what} {kind.value}, and an alphabet is of 1 to {_SYMBOLS:,}; use bpe")
        self.kind, self.alphabet, self.extra = kind, tuple(alphabet), extra
        stored = {"kind": kind.value, "alphabet": self.alphabet, "extra": extra}
        self.model = json.dumps(stored, ensure_ascii=False).encode() + b"\n"
        self.pieces = (b"",) * SPECIALS + tuple(map(self._piece, self.alphabet)) + (b"",) * extra
        self._ids = {symbol: number for number, symbol in enumerate(self.alphabet, start=SPECIALS)}

    @classmethod
    def of(cls, kind: Kind, texts: Iterable[str]) -> SymbolTokenizer:
        """The tokenizer of all symbols in the texts, sorted."""
        return cls(kind, sorted(set().union(*(symbols_of(kind, text) for text in texts))))

    def reserve(self, extra: int) -> SymbolTokenizer:
        """The same alphabet with so many more reserved ids."""
        return SymbolTokenizer(self.kind, self.alphabet, self.extra + extra)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text.

        Raises:
            ValueError: for a symbol that is not in the alphabet.
        """
        try:
            return [[self._ids[symbol] for symbol in symbols_of(self.kind, text)] for text in texts]
        except KeyError as error:
            symbol = error.args[0]
            near = difflib.get_close_matches(symbol, self.alphabet, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it begins with {' '.join(self.alphabet[:12])}"
            raise ValueError(f"{symbol!r} is none of the alphabet's {len(self.alphabet)} symbols; {hint}") from None

    def _piece(self, symbol: str) -> bytes:
        return symbol.encode() + (b" " if self.kind is Kind.WORDS else b"")


def symbols_of(kind: Kind, text: str) -> Sequence[str]:
    """What a text is made of: its characters, or its words."""
    return text.split() if kind is Kind.WORDS else text


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, used without normalisation so that text survives.

    Args:
        model: the serialised model.

    Raises:
        ValueError: if this is no SentencePiece model, or one without BOS or EOS.
    """

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_NORMALISATION)
        except RuntimeError as error:
            raise ValueError("not a SentencePiece model") from error
        self.bos, self.eos, self.unk = (getattr(self._processor, f"{name}_id")() for name in ("bos", "eos", "unk"))
        if min(self.bos, self.eos) < 0:
            raise ValueError("the SentencePiece model has no BOS or no EOS; documents could not be told apart")
        pad = self._processor.pad_id()
        self.pad = pad if pad >= 0 else self.eos
        self.pieces = tuple(self._piece(token) for token in range(self._processor.get_piece_size()))
        self.extra = 0
        while self._processor.id_to_piece(self.vocab - 1 - self.extra).startswith(_RESERVED):
            self.extra += 1
        # A space and this character are one to SentencePiece; spelled in bytes it stays itself.
        self._space = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]

    def reserve(self, extra: int) -> SentencePieceTokenizer:
        """The model with so many more control pieces at its end."""
        names = (f"{_RESERVED}{self.extra + number}>".encode() for number in range(extra))
        # Messages of up to 127 bytes, their lengths one byte each, appended to the model's repeated field `pieces`.
        pieces = (b"\x0a" + bytes([len(name)]) + name + _CONTROL for name in names)
        return SentencePieceTokenizer(self.model + b"".join(b"\x0a" + bytes([len(piece)]) + piece for piece in pieces))

    def _piece(self, token: int) -> bytes:
        processor = self._processor
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            return b""
        piece: str = processor.id_to_piece(token)
        if processor.is_byte(token):
            return bytes([int(piece.removeprefix("<").removesuffix(">"), 16)])
        return piece.replace(_SPACE, " ").encode()

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        parts: list[str] = []
        owners: list[tuple[int, bool]] = []
        for owner, text in enumerate(texts):
            for number, run in enumerate(text.split(_SPACE)):
                for start in range(0, max(len(run), 1), _PART):
                    parts.append(run[start : start + _PART])
                    owners.append((owner, number > 0 and start == 0))
        tokens: list[list[int]] = [[] for _ in texts]
        encoded = self._processor.encode(parts, num_threads=os.cpu_count() or 1)
        for (owner, after_space), ids in zip(owners, encoded, strict=True):
            if after_space:
                tokens[owner] += self._space
            tokens[owner] += ids
        return tokens


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Loads a tokenizer that `save` wrote, or any SentencePiece `.model`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no tokenizer; names the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer model {path}")
    model = path.read_bytes()
    if found := re.fullmatch(rb"bytes(?: (\d+))?\n", model):
        return ByteTokenizer(int(found[1] or 0))
    if model.startswith(b'{"kind"'):
        stored = json.loads(model)
        return SymbolTokenizer(Kind(stored["kind"]), stored["alphabet"], stored["extra"])
    try:
        return SentencePieceTokenizer(model)
    except ValueError as error:
        raise ValueError(f"cannot use {path}: {error}") from error
