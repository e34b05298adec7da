"""Tokenizers give back every text exactly, and know how many bytes each token stands for."""

import argparse
import hashlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import pieces
from experiments.data import tokenizer as tokenizers
from experiments.data.tokenizer import Kind, TokenizerConfig

CORPUS = [Path(module.__file__).read_text() for module in (argparse, inspect)] + [
    "naïve — fi ½ \t tabs\tand\r\nline ends\0 NUL"
]


@pytest.fixture(scope="module", params=["bpe", "unigram", "bytes"])
def tokenizer(request):
    if request.param == "bytes":
        return tokenizers.ByteTokenizer()
    return pieces.train(CORPUS, kind=Kind(request.param), vocab=320)


@pytest.fixture(scope="module")
def bpe():
    return pieces.train(CORPUS, kind=Kind.BPE, vocab=320)


HARD = [
    "", " ", "   ", "\n", "\t\t", "\r\n\r\n", "\0", "a\0b", "\u2581", " \u2581 \u2581\u2581", "\u2047", "\ufffd",
    "\ufeffx", "<s></s><pad><unk><0x0A>", "e\u0301 \u00e9", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\0\x01\x1f\x7f\x85\u2028", " lead", "trail ", "12345 67", "\u4e2d\u6587",
    "x" * 200_000, " " * 70_000, "ab \u2581\n" * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_hard_texts_survive(tokenizer, text):
    check_exact(tokenizer, text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet=" \t\r\n\0\u2581ax1<>0\u00e9\U0001f600", max_size=60))
def test_every_text_survives(tokenizer, text):
    check_exact(tokenizer, text)


def check_exact(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.bytes_per_token[tokens].sum() == len(text.encode())
    specials = {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk}
    assert not specials & set(tokens.tolist())


def test_specials_are_distinct_and_stand_for_no_bytes(tokenizer):
    specials = [tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk]
    assert len(set(specials)) == 4
    assert tokenizer.bytes_per_token[specials].tolist() == [0, 0, 0, 0]
    assert tokenizer.bytes_per_token.shape == (tokenizer.vocab,)
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("a b"), tokenizer.eos]) == "a b"


def test_trained_pieces_are_worth_their_place(bpe):
    text = CORPUS[0]
    assert bpe.vocab == 320
    assert len(bpe.encode(text)) < 0.7 * len(tokenizers.ByteTokenizer().encode(text))


def test_digits_stand_alone(bpe):
    assert all(len(piece) == 1 for piece in bpe.pieces if any(48 <= byte <= 57 for byte in piece))


def test_many_texts_at_once_equal_one_at_a_time(tokenizer):
    texts = [CORPUS[2], "", "\u2581", "x\u2581y"]
    for text, tokens in zip(texts, tokenizer.encode_all(texts), strict=True):
        np.testing.assert_array_equal(tokens, tokenizer.encode(text))


def test_save_and_load_keep_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    loaded = tokenizers.load(tmp_path / "t.model")
    assert loaded.sha256 == tokenizer.sha256 == hashlib.sha256(tokenizer.model).hexdigest()
    assert loaded.pieces == tokenizer.pieces
    np.testing.assert_array_equal(loaded.encode("def f"), tokenizer.encode("def f"))


def test_training_is_the_same_in_another_process(bpe):
    script = (
        "from tests.experiments.test_data_tokenizer import CORPUS\n"
        "from experiments.data import pieces, tokenizer as t\n"
        "print(pieces.train(CORPUS, kind=t.Kind.BPE, vocab=320).sha256)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == bpe.sha256
    assert pieces.train(CORPUS[:1], kind=Kind.BPE, vocab=320).sha256 != bpe.sha256


def test_models_of_other_makers_are_used_without_their_normalisation(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS[0].splitlines()),
        model_prefix=str(tmp_path / "other"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=True,
        minloglevel=2,
    )
    raw = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "other.model"))
    text = " two  spaces, a ligature ﬁ and ½\n"
    assert raw.decode(raw.encode(text)) != text  # what would be lost otherwise
    check_exact(tokenizers.load(tmp_path / "other.model"), text)


def test_rare_letters_of_a_large_alphabet_are_left_to_bytes():
    text = "".join(chr(0x4E00 + (i * i) % 3000) for i in range(20_000))
    check_exact(pieces.train([text], kind=Kind.BPE, vocab=400), text[:500] + "a")


def test_bad_settings_are_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="vocabulary of 100 is too small"):
        TokenizerConfig(vocab=100)
    with pytest.raises(ValueError, match="go together"):
        TokenizerConfig(path="x.model")
    with pytest.raises(ValueError, match="go together"):
        TokenizerConfig(kind=Kind.FILE)
    with pytest.raises(FileNotFoundError, match="no tokenizer model"):
        tokenizers.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"hello, I am not a model")
    with pytest.raises(ValueError, match=r"cannot use .*bad\.model: not a SentencePiece model"):
        tokenizers.load(tmp_path / "bad.model")
    with pytest.raises(ValueError, match="give more text or a smaller vocabulary") as info:
        pieces.train(["abc"], kind=Kind.BPE, vocab=1024)
    assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match="no text to train"):
        pieces.train([], kind=Kind.BPE, vocab=1024)


@pytest.mark.parametrize("extra", [1, 5, 300])
def test_reserved_ids_stand_for_nothing_and_change_nothing_else(tokenizer, tmp_path, extra):
    larger = tokenizer.reserve(extra)
    assert (larger.vocab, larger.extra, tokenizer.extra) == (tokenizer.vocab + extra, extra, 0)
    assert larger.pieces == tokenizer.pieces + (b"",) * extra
    for name in ("pad", "bos", "eos", "unk"):
        assert getattr(larger, name) == getattr(tokenizer, name)
    for text in (*HARD[:-3], CORPUS[0][:2000], "<reserved_0> bytes 5"):
        assert larger.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert larger.decode([tokenizer.vocab, *tokenizer.encode("a b"), larger.vocab - 1]) == "a b"
    larger.save(tmp_path / "t.model")
    loaded = tokenizers.load(tmp_path / "t.model")
    assert (loaded.extra, loaded.pieces, loaded.sha256) == (extra, larger.pieces, larger.sha256)
    assert loaded.reserve(2).extra == extra + 2


def test_reserved_ids_are_part_of_what_a_tokenizer_is_only_where_there_are_some():
    """Rows that were prepared before there were any keep their fingerprints."""
    assert TokenizerConfig(kind=Kind.BYTES).identity() == {"kind": "bytes"}
    assert TokenizerConfig(kind=Kind.BYTES, extra=3).identity() == {"kind": "bytes", "extra": 3}
    assert "extra" not in TokenizerConfig().identity()
    with pytest.raises(ValueError, match="extra must be 0 reserved ids or more, not -1"):
        TokenizerConfig(extra=-1)
