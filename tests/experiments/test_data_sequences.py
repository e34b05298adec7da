"""Sequences of symbols become documents, and tokenizers whose vocabulary they are; what is none is told in a line."""

import gzip
import json

import numpy as np
import pytest

from experiments.commands.options import TextOptions
from experiments.data import tokenizer as tokenizers
from experiments.data.prepare import prepare
from experiments.data.sequences import Sequences
from experiments.data.tokenizer import Kind, SymbolTokenizer


def written(path, entries):
    """A file of entries, one a line where its name says so."""
    text = "\n".join(map(json.dumps, entries)) if ".jsonl" in path.name else json.dumps(entries)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return (str(path),)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("entry", "text", "kind"),
    [
        ("MKV", "MKV", Kind.CHARACTERS),
        ([67, -1, 67], "67 -1 67 ", Kind.WORDS),
        (["e4", "e5", "Nf3"], "e4 e5 Nf3 ", Kind.WORDS),
        ([[1, 2, 3], [10, 20, 30]], "1 10 2 20 3 30 ", Kind.WORDS),  # what sounds together stands together
        (["named", [[1, 2], [3, 4]]], "1 3 2 4 ", Kind.WORDS),
        ({"id": 7, "seq": [5, 6]}, "5 6 ", Kind.WORDS),
    ],
    ids=["string", "numbers", "words", "parts", "named", "object"],
)
def test_a_sequence_is_a_document(tmp_path, name, entry, text, kind):
    source = Sequences(written(tmp_path / name, [entry, entry]), "seq")
    documents = list(source.documents())
    assert [document.text for document in documents] == [text, text]
    assert [document.name for document in documents] == [f"{name}:1", f"{name}:2"]
    assert source.suited is kind


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 1, "sek": "M"}, "a.jsonl:1 has no key 'seq'; did you mean 'sek'"),
        ([[1, 2], [3]], r"a.jsonl:1: parts that sound together are of one length, and these of \[1, 2\]"),
        ([1, None], "a.jsonl:1: a symbol is a number or a word, not NoneType"),
        ([1, True], "a symbol is a number or a word, not bool"),
        (["one", "two words"], "symbol 'two words' is empty or has a space in it"),
        (3, "a.jsonl:1 is no sequence but int"),
    ],
    ids=["key", "parts", "none", "bool", "space", "number"],
)
def test_what_is_no_sequence_is_told(tmp_path, entry, message):
    with pytest.raises(ValueError, match=message):
        list(Sequences(written(tmp_path / "a.jsonl", [entry]), "seq").documents())


def test_files_that_hold_none_are_told(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        list(Sequences((str(tmp_path / "a.json"),)).read())
    with pytest.raises(ValueError, match="is no list of sequences but dict"):
        list(Sequences(written(tmp_path / "b.json", {"seq": [1]})).read())
    with pytest.raises(ValueError, match=r"c.tsv holds no sequences: want .json or .jsonl \(also .gz, .xz\)"):
        list(Sequences(written(tmp_path / "c.tsv", [])).read())
    with pytest.raises(ValueError, match="is an object, and no key is named; there are seq"):
        list(Sequences(written(tmp_path / "d.json", [{"seq": [1]}])).read())
    with pytest.raises(ValueError, match="there are no sequences"):
        _ = Sequences(written(tmp_path / "e.json", [])).suited


@pytest.mark.parametrize(("kind", "texts"), [(Kind.CHARACTERS, ["MKV", "VAé"]), (Kind.WORDS, ["67 -1 ", "e4 67 "])])
def test_symbols_are_tokens_and_survive(tmp_path, kind, texts):
    tokenizer = SymbolTokenizer.of(kind, texts).reserve(2)
    assert tokenizer.vocab == 4 + len(tokenizer.alphabet) + 2
    tokenizer.save(tmp_path / "t.model")
    loaded = tokenizers.load(tmp_path / "t.model")
    assert (loaded.pieces, loaded.sha256, loaded.extra) == (tokenizer.pieces, tokenizer.sha256, 2)
    for text in texts:
        tokens = loaded.encode(text)
        assert len(tokens) == len(tokenizers.symbols_of(kind, text))
        assert loaded.decode(tokens) == text
        assert loaded.bytes_per_token[tokens].sum() == len(text.encode())
        assert {loaded.pad, loaded.bos, loaded.eos, loaded.unk}.isdisjoint(tokens.tolist())
        assert tokens.max() < loaded.vocab - 2


def test_an_unknown_symbol_and_an_alphabet_without_end_are_told():
    tokenizer = SymbolTokenizer.of(Kind.WORDS, ["Nf3 e4"])
    with pytest.raises(ValueError, match="'Nf4' is none of the alphabet's 2 symbols; did you mean 'Nf3'"):
        tokenizer.encode("e4 Nf4")
    with pytest.raises(ValueError, match="have 70,000 different words, and an alphabet is of 1 to 65,536; use bpe"):
        SymbolTokenizer.of(Kind.WORDS, [" ".join(map(str, range(70_000)))])
    with pytest.raises(ValueError, match="the documents are no words"):
        SymbolTokenizer.of(Kind.WORDS, ["  "])


def test_rows_of_sequences_hold_their_symbols(tmp_path):
    """Also those that only held-out sequences have; the tokenizer is that which suits them, if none is named."""
    paths = written(tmp_path / "a.json", [[number, number + 1, 0] for number in range(100)])
    prepared = prepare(TextOptions(sequences=paths, length=4, held_out=0.2).config(), tmp_path / "data")
    assert prepared.metadata.tokenizer == {"kind": "words"}
    assert prepared.metadata.vocab == 4 + 101
    rows = np.concatenate(
        [np.asarray(split.take(np.arange(len(split)))) for split in (prepared.train, prepared.held_out)]
    )
    read = prepared.tokenizer.decode(rows.reshape(-1)).split()
    assert set(read) >= {str(number) for number in range(1, 100)} - set(map(str, range(3)))
    named = TextOptions(sequences=paths, tokenizer=Kind.BYTES, length=4).config()
    assert named.tokenizer.kind is Kind.BYTES
