"""Prepared rows hold the documents, all of them, once; the same rows from the same text; never half a folder."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tyro

from experiments.data import packed, pieces
from experiments.data.packed import DataConfig
from experiments.data.prepare import fingerprint, prepare
from experiments.data.prepared import load
from experiments.data.sources import Documents, Embedded, TextFiles
from experiments.data.tokenizer import Kind, TokenizerConfig

BYTES = TokenizerConfig(kind=Kind.BYTES)
BPE = TokenizerConfig(vocab=300)
LINES = [f"line {i}: {'tick tock ' * (i % 13)}– {i * i}" for i in range(400)]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(LINES) + "\n")
    return TextFiles((str(tmp_path / "text.txt"),), Documents.LINE)


def config_of(source, **changes):
    return DataConfig(**{"source": source, "tokenizer": BYTES, "length": 32, "held_out": 0.2, **changes})


def documents_in(prepared, rows):
    """The documents in rows, read back; the last may be cut."""
    tokens = rows.take(np.arange(len(rows))).ravel()
    tokenizer = prepared.tokenizer
    assert tokens[0] == tokenizer.bos
    starts = np.flatnonzero(tokens == tokenizer.bos)
    ends = np.flatnonzero(tokens == tokenizer.eos)
    np.testing.assert_array_equal(starts[1:], ends[: len(starts) - 1] + 1)  # BOS tokens EOS BOS tokens EOS …
    return [tokenizer.decode(part) for part in np.split(tokens, starts[1:])]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_rows_hold_every_document_once_in_one_split(tmp_path, text, tokenizer):
    prepared = prepare(config_of(text, tokenizer=tokenizer), tmp_path / "out")
    train, held_out = (documents_in(prepared, rows) for rows in (prepared.train, prepared.held_out))
    whole = Counter(train[:-1] + held_out[:-1])
    assert whole <= Counter(LINES)
    metadata = prepared.metadata
    # What is missing is less than a row at the end of each split.
    for documents, counts in ((train, metadata.train), (held_out, metadata.held_out)):
        assert counts.tokens == counts.rows * 33 + counts.dropped
        assert 0 <= counts.dropped < 33
        assert 0 <= counts.documents - len(documents) <= 33 // 2
    assert metadata.train.documents + metadata.held_out.documents == len(LINES)
    assert metadata.train.bytes + metadata.held_out.bytes == sum(len(line.encode()) for line in LINES)
    assert 0.1 < metadata.held_out.documents / len(LINES) < 0.3
    assert train[:-1] != [line for line in LINES if line in set(train[:-1])]  # shuffled


def test_bits_per_byte_is_exact(tmp_path, text):
    """Every byte of the text is counted once by the tokens' byte counts."""
    prepared = prepare(config_of(text, tokenizer=BPE, length=1), tmp_path / "out")
    tokens = prepared.train.take(np.arange(len(prepared.train)))
    dropped = prepared.metadata.train.dropped  # less than a row of 2, at most the final EOS
    assert dropped < 2
    assert prepared.tokenizer.bytes_per_token[tokens].sum() == prepared.metadata.train.bytes


def test_tokenizer_is_trained_on_training_documents_only(tmp_path, text):
    seen = []
    original = pieces.train

    def spy(texts, **settings):
        seen.extend(texts)
        return original(texts, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "train", spy)
        prepared = prepare(config_of(text, tokenizer=BPE), tmp_path / "out")
    held_out = set(documents_in(prepared, prepared.held_out)[:-1])
    assert held_out
    assert not held_out & set(seen)
    assert set(seen) <= set(LINES)
    assert len(seen) == len(set(seen)) == prepared.metadata.train.documents


def test_tokenizer_sample_is_bounded_and_does_not_depend_on_the_order_of_documents(tmp_path):
    for name, lines in (("a", LINES), ("b", LINES[::-1])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    small = dataclasses.replace(BPE, sample_bytes=12_000)
    configs = [config_of(TextFiles((str(tmp_path / f"{name}.txt"),), Documents.LINE), tokenizer=small) for name in "ab"]
    samples = [packed._sample(config) for config in configs]
    assert samples[0] == samples[1]
    assert 12_000 <= sum(len(chunk.encode()) for chunk in samples[0]) < 12_200
    a, b = (prepare(config, tmp_path / "out") for config in configs)
    assert a.metadata.train == b.metadata.train  # hashes of the rows included


def test_adding_files_moves_no_document_and_duplicates_stay_on_one_side(tmp_path):
    def splits(name, files):
        folder = tmp_path / name
        folder.mkdir()
        for number, lines in enumerate(files):
            (folder / f"{number}.txt").write_text("\n".join(lines))
        # Rows of two tokens lose at most an EOS.
        prepared = prepare(config_of(TextFiles((f"{folder}/*",), Documents.LINE), length=1), tmp_path / "out")
        return [set(documents_in(prepared, rows)) for rows in (prepared.train, prepared.held_out)]

    train, held_out = splits("before", [LINES])
    more_train, more_held_out = splits("after", [["entirely", "new"], LINES, LINES[:50]])
    assert not more_train & more_held_out
    assert more_train - train | more_held_out - held_out == {"entirely", "new"}
    assert train <= more_train
    assert held_out <= more_held_out


def test_preparing_again_opens_what_is_there(tmp_path, text):
    config = config_of(text)
    first = prepare(config, tmp_path / "out")
    made = os.stat(first.folder / "train.npy").st_ino
    second = prepare(config, tmp_path / "out")
    assert (second.folder, second.metadata) == (first.folder, first.metadata)
    assert os.stat(second.folder / "train.npy").st_ino == made
    assert load(first.folder) == first


def test_preparing_the_embedded_corpus_again_reads_no_file(tmp_path, monkeypatch):
    config = DataConfig(tokenizer=BYTES, length=128)
    first = prepare(config, tmp_path)
    monkeypatch.setattr(Embedded, "read", lambda self: pytest.fail("read again"))
    started = time.perf_counter()
    assert prepare(config, tmp_path).fingerprint == first.fingerprint
    assert time.perf_counter() - started < 1.0  # 0.02 s when nothing else runs
    assert first.metadata.train.bytes > 8e6


def test_a_changed_file_is_noticed_at_once(tmp_path, text):
    first = prepare(config_of(text), tmp_path / "out")
    path = Path(text.paths[0])
    path.write_text(path.read_text().replace("line 7:", "line X:"))
    second = prepare(config_of(text), tmp_path / "out")
    assert second.fingerprint != first.fingerprint
    assert second.metadata.contents_sha256 != first.metadata.contents_sha256


def test_everything_that_decides_the_rows_is_in_the_fingerprint(tmp_path, text):
    base = config_of(text, tokenizer=BPE)
    changes = [
        {},
        {"length": 33},
        {"held_out": 0.21},
        {"seed": 1},
        {"tokenizer": BYTES},
        {"tokenizer": dataclasses.replace(BPE, vocab=301)},
        {"tokenizer": dataclasses.replace(BPE, kind=Kind.UNIGRAM)},
        {"tokenizer": dataclasses.replace(BPE, sample_bytes=10)},
        {"source": dataclasses.replace(text, split_into=Documents.FILE)},
    ]
    configs = [dataclasses.replace(base, **change) for change in changes]
    fingerprints = [fingerprint(config, config.source.contents()) for config in configs]
    assert len(set(fingerprints)) == len(changes)
    # What plays no part leaves it alone: the vocabulary of a tokenizer that has its own.
    plain, other = (
        dataclasses.replace(base, tokenizer=TokenizerConfig(Kind.BYTES, vocab=vocab)) for vocab in (300, 999)
    )
    assert fingerprint(plain, text.contents()) == fingerprint(other, text.contents())


def test_an_existing_model_makes_the_same_rows(tmp_path, text):
    trained = prepare(config_of(text, tokenizer=BPE), tmp_path / "out")
    model = TokenizerConfig(Kind.FILE, path=str(trained.folder / "tokenizer.model"))
    reused = prepare(config_of(text, tokenizer=model), tmp_path / "out")
    assert reused.fingerprint != trained.fingerprint
    assert reused.metadata.train == trained.metadata.train


def test_a_model_that_loses_text_is_refused(tmp_path, text):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["tick tock line"] * 10), model_prefix=str(tmp_path / "m"), vocab_size=16,
        model_type="bpe", minloglevel=2,
    )  # fmt: skip
    config = config_of(text, tokenizer=TokenizerConfig(Kind.FILE, path=str(tmp_path / "m.model")))
    with pytest.raises(ValueError, match=r"loses text of document text\.txt:1 "):
        prepare(config, tmp_path / "out")


def test_other_processes_make_the_same_bytes(tmp_path, text):
    here = prepare(config_of(text, tokenizer=BPE), tmp_path / "here")
    script = (
        "import sys; from tests.experiments.test_data_prepare import *; "
        "print(prepare(config_of(TextFiles((sys.argv[1],), Documents.LINE), tokenizer=BPE), sys.argv[2]).folder)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, text.paths[0], str(tmp_path / "there")],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = Path(result.stdout.strip())
    for name in ("train.npy", "held_out.npy", "tokenizer.model", "metadata.json"):
        assert (there / name).read_bytes() == (here.folder / name).read_bytes()


def test_preparing_twice_at_once_gives_one_whole_folder(tmp_path, text):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare(config_of(text), tmp_path / "out"), range(4)))
    assert len({result.folder for result in results}) == 1
    assert load(results[0].folder).metadata == results[0].metadata
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {results[0].folder.name, ".contents"}


def test_a_killed_preparation_leaves_nothing_that_looks_whole(tmp_path, text):
    script = (
        "import os, sys, signal; from tests.experiments.test_data_prepare import *\n"
        "def die(what, share):\n"
        "    if what == 'writing train rows': os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(config_of(TextFiles((sys.argv[1],), Documents.LINE)), sys.argv[2], progress=die)"
    )
    out = tmp_path / "out"
    result = subprocess.run([sys.executable, "-c", script, text.paths[0], str(out)], check=False)
    assert result.returncode == -9
    left = [path.name for path in out.iterdir()]
    assert [name for name in left if name.startswith(".partial-")]
    assert not [name for name in left if not name.startswith(".")]
    prepared = prepare(config_of(text), out)
    assert not [path for path in out.iterdir() if path.name.startswith(".partial-")]  # cleared away
    assert len(prepared.train) == prepared.metadata.train.rows


def test_an_error_on_the_way_leaves_nothing(tmp_path, text, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "_write_rows", full)
    with pytest.raises(OSError, match=r"cannot write prepared rows in .*out: .*No space left on device"):
        prepare(config_of(text), tmp_path / "out")
    with pytest.raises(OSError, match=r"cannot write prepared rows in .*text\.txt/out: .*Not a directory"):
        prepare(config_of(text), Path(text.paths[0]) / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".contents"}


def test_too_little_text_says_how_much_there_is_and_what_to_change(tmp_path, text):
    with pytest.raises(ValueError, match=r"are held-out, with \d+ tokens, less than one row of 100001; give more text"):
        prepare(config_of(text, length=100_000), tmp_path / "out")
    one_file = dataclasses.replace(text, split_into=Documents.FILE)
    with pytest.raises(ValueError, match=r"[01] of 1 documents are (held-out|training), with 0 tokens.*lines or para"):
        prepare(config_of(one_file), tmp_path / "out")
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="the source holds no text"):
        prepare(config_of(TextFiles((str(tmp_path / "blank.txt"),))), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != ".contents"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "train.npy", 1000),
        lambda folder: np.save(folder / "held_out.npy", np.zeros((2, 33), np.uint16)),
        lambda folder: (folder / "metadata.json").write_text("{"),
        lambda folder: (folder / "metadata.json").write_text(json.dumps({"train": {}})),
    ],
    ids=["truncated", "other rows", "no json", "other keys"],
)
def test_damaged_folders_are_refused(tmp_path, text, damage):
    prepared = prepare(config_of(text), tmp_path / "out")
    damage(prepared.folder)
    with pytest.raises(ValueError, match="delete the folder and prepare again"):
        prepare(config_of(text), tmp_path / "out")


def test_a_folder_without_rows_is_named_with_its_neighbour(tmp_path, text):
    folder = prepare(config_of(text), tmp_path / "out").folder
    with pytest.raises(FileNotFoundError, match=rf"no prepared data .* did you mean '.*{folder.name}'"):
        load(folder.with_name(folder.name[:-2]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"length": 0}, "at least 1"), ({"held_out": 0.0}, "between 0 and 1"), ({"held_out": 1.0}, "between 0 and 1")],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**wrong)


def test_large_vocabularies_need_wider_numbers():
    class Wide:
        vocab = 65_537

    assert packed._dtype(Wide()) is np.uint32
    Wide.vocab = 65_536
    assert packed._dtype(Wide()) is np.uint16


def test_configuration_reads_from_dotted_options():
    arguments = "--length 64 --tokenizer.vocab 512 source:text-files --source.paths a b --source.split-into line"
    config = tyro.cli(DataConfig, args=arguments.split(), config=(tyro.conf.EnumChoicesFromValues,))
    assert config == DataConfig(
        source=TextFiles(("a", "b"), Documents.LINE), tokenizer=TokenizerConfig(vocab=512), length=64
    )
    assert tyro.cli(DataConfig, args=[]) == DataConfig()
