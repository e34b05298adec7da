"""Text to a model's tokens and back, whoever made the tokenizer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.data.tokenizer import Tokenizer

PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
CONFIGS = ("config.json", "generation_config.json")
FILES = ("tokenizer.json", *PIECES, *CONFIGS)
"""What of a folder decides its text."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """How text becomes tokens.

    Attributes:
        encode: token ids of a text as a model begins to read it.
        decode: the text of token ids, specials silent.
        start: what a decoder that attends to an encoder has read before it writes.
        end: the token that ends a text, or None.
        pad: the token that fills up.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    start: int
    end: int | None
    pad: int


def of_tokenizer(tokenizer: Tokenizer, *, paired: bool) -> Language:
    """That of a tokenizer trained here; `paired` says that texts are read by an encoder, and end there."""

    def encode(text: str) -> list[int]:
        tokens = tokenizer.encode(text).tolist()
        return [*tokens, tokenizer.eos] if paired else [tokenizer.bos, *tokens]

    return Language(encode=encode, decode=tokenizer.decode, start=tokenizer.bos, end=tokenizer.eos, pad=tokenizer.pad)


def of_folder(folder: Path, *, paired: bool) -> Language:
    """That of a folder of transformers: `tokenizer.json`, or a SentencePiece model; specials as `config.json` says.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the library that reads it is not installed, or the file is damaged.
    """
    special = _specials(folder)
    end, pad = special.get("eos_token_id"), special.get("pad_token_id")
    begin = special.get("bos_token_id", end)
    if (path := folder / "tokenizer.json").is_file():
        encode, decode = _of_library(path)
    elif found := [folder / name for name in PIECES if (folder / name).is_file()]:
        encode, decode = _of_pieces(found[0], paired=paired)
    else:
        raise FileNotFoundError(f"{folder} has no tokenizer (no tokenizer.json); give token ids instead, with --ids")

    def prompt(text: str) -> list[int]:
        tokens = encode(text)
        return tokens if tokens or begin is None else [begin]  # nothing to go on from but the beginning

    start = special.get("decoder_start_token_id", begin)
    return Language(encode=prompt, decode=decode, start=start or 0, end=end, pad=end or 0 if pad is None else pad)


def _specials(folder: Path) -> dict[str, int]:
    """Ids by their name in the configuration; of several, the first."""
    found = {}
    for path in (folder / name for name in CONFIGS):
        if path.is_file():
            try:
                found |= json.loads(path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{path} is damaged: {error}") from error
    several = {name: value for name, value in found.items() if name.endswith("_token_id") and value is not None}
    return {name: value[0] if isinstance(value, list) else value for name, value in several.items()}


def _of_library(path: Path):
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise ValueError(
            f"reading {path.name} needs the package tokenizers (the extra `text`); or give token ids with --ids"
        ) from None
    try:
        library = Library.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is damaged: {error}") from error
    library.no_padding()
    library.no_truncation()
    return lambda text: library.encode(text).ids, lambda tokens: library.decode(list(tokens))


def _of_pieces(path: Path, *, paired: bool):
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} is no SentencePiece model") from error
    first = [pieces.bos_id()] if not paired and pieces.bos_id() >= 0 else []
    last = [pieces.eos_id()] if paired and pieces.eos_id() >= 0 else []
    return lambda text: [*first, *pieces.encode(text), *last], lambda tokens: pieces.decode(list(tokens))
