"""`scaling import`, `export`, `generate` and `evaluate`, on models of a few thousand parameters."""

import json
import math
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import scores
from experiments.buckets import Place
from experiments.cli import main
from experiments.data.tokenizer import ByteTokenizer
from experiments.generation.language import of_tokenizer
from experiments.trained import Trained
from models import pretrained, zoo
from models.execution import Execution
from models.layers import initialize
from models.transformer import declare
from parallel.mesh import device_mesh

SIZES = dict(width=16, depth=2, heads=4, vocab=300, length=64)


@pytest.fixture(scope="module")
def one_device():
    return device_mesh("data=1", jax.devices()[:1])


def made(architecture, mesh, seed=0):
    with jax.set_mesh(mesh):
        run = Execution()
        init = jax.jit(lambda key: initialize(declare(architecture, execution=run), key, run.rules))
        return init(jax.random.key(seed))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, one_device):
    """A folder of GPT-2 as transformers has them."""
    folder = tmp_path_factory.mktemp("theirs") / "tiny"
    with jax.set_mesh(one_device):
        pretrained.save(folder, made(zoo.gpt2(**SIZES), one_device))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps, on bytes."""
    root = tmp_path_factory.mktemp("runs")
    text = root / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} says that {i} times {i} is {i * i}." for i in range(400)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
        status = main(
            ["train", "--data.text", str(text), "--data.tokenizer", "bytes", "--data.length", "32", "--steps", "4",
             "--model.family", "gpt2", "--model.width", "16", "--model.depth", "1", "--model.heads", "2",
             "--placement.mesh", "data=8", "-o", str(root)]
        )  # fmt: skip
    assert status == 0
    (folder,) = [path.parent for path in root.glob("*/run.json")]
    return folder


WORDS = {"red": "rojo", "house": "casa", "the": "la", "cat": "gato", "sees": "ve", "no": "no", "a": "un", "big": "gran"}


def pairs_run(root, *settings):
    """A run on sentences of a toy language, word by word; some say the same in both."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(600):
        words = rng.choice(list(WORDS), rng.integers(1, 5))
        lines.append(f"{' '.join(words)}\t{' '.join(WORDS[word] for word in words)}\n")
    (root / "pairs.tsv").write_text("first\tsecond\n" + "".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
        status = main(
            ["train", "--data.pairs", str(root / "pairs.tsv"), "--data.columns", "first", "second",
             "--data.vocab", "320", "--data.length", "12", "--data.held-out", "0.1", "--model.family", "t5",
             "--placement.mesh", "data=8", "-o", str(root), *settings]
        )  # fmt: skip
    assert status == 0
    (folder,) = [path.parent for path in root.glob("*/run.json")]
    return folder


def ask(capsys, *arguments):
    """Exit status, standard output, and what was said of a mistake, which is one line."""
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == (status != 0), said.err
    return status, said.out, said.err


def test_there_and_back_is_bit_for_bit(theirs, tmp_path, capsys):
    status, out, _ = ask(capsys, "import", theirs, "-o", tmp_path / "ours")
    assert status == 0
    assert "gpt2: width 16, 2 blocks, vocabulary 300" in out
    assert ask(capsys, "export", tmp_path / "ours", tmp_path / "back")[0] == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    configs = [json.loads((folder / "config.json").read_text()) for folder in (theirs, tmp_path / "back")]
    assert configs[0] == configs[1]
    # All three folders write the same.
    question = ["--ids", "--prompt", "5 6 7", "--new", "5", "--temperature", "0"]
    written = {ask(capsys, "generate", folder, *question)[1] for folder in (theirs, tmp_path / "ours")}
    assert len(written) == 1
    assert written.pop().startswith("5 6 7 ")


def test_two_models_in_two_folders_are_one(tmp_path, capsys, one_device):
    """There and back bit for bit, and only if they share what such models share."""
    pair = zoo.electra_pair(width=16, depth=1, heads=2, share=0.5, vocab=40, length=12, dropout=0.0)
    with jax.set_mesh(one_device):
        pretrained.save(theirs := tmp_path / "theirs", made(pair, one_device))
    status, out, _ = ask(capsys, "import", theirs, "-o", tmp_path / "ours")
    assert status == 0
    assert "electra-pair: width 16, 2 blocks, vocabulary 40" in out
    assert ask(capsys, "export", tmp_path / "ours", tmp_path / "back")[0] == 0
    for side in pretrained.PAIR:
        before, after = (load_file(folder / side / "model.safetensors") for folder in (theirs, tmp_path / "back"))
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name])
    path = theirs / "generator/model.safetensors"
    changed = load_file(path)
    name = next(name for name in changed if name.endswith("word_embeddings.weight"))
    save_file(changed | {name: changed[name] + 1}, path)
    status, _, said = ask(capsys, "import", theirs, "-o", tmp_path / "other")
    assert status == 1
    assert "generator and discriminator share 'table', and theirs differ" in said


def test_a_run_writes_and_is_measured(run, capsys, tmp_path):
    status, out, _ = ask(capsys, "generate", run, "--prompt", "Para", "Once", "--samples", "2", "--new", "8", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line["prompt"] for line in lines] == ["Para", "Para", "Once", "Once"]
    assert all(0 < len(line["tokens"]) <= 8 for line in lines)
    again = ask(capsys, "generate", run, "--prompt", "Para", "Once", "--samples", "2", "--new", "8", "--json")[1]
    other = ask(capsys, "generate", run, "--prompt", "Para", "Once", "--samples", "2", "--new", "8", "--seed", "1")[1]
    assert again == out
    assert other.splitlines() != [line["prompt"] + line["text"] for line in lines]
    status, out, _ = ask(capsys, "generate", run, "--prompt", "Para", "--beams", "3", "--samples", "2", "--new", "4")
    assert len(out.splitlines()) >= 2
    assert all(line.startswith("Para") for line in out.splitlines() if line.startswith("P"))

    measured = json.loads(ask(capsys, "evaluate", run, "--json")[1])
    stored = json.loads((run / "result.json").read_text())
    assert measured["loss"] == pytest.approx(stored["loss"], rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(stored["bits_per_byte"], rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    assert "perplexity" in ask(capsys, "evaluate", run, "--rows", "8")[1]

    # Exported, it is the same model to another reader.
    assert ask(capsys, "export", run, tmp_path / "out")[0] == 0
    question = ["--ids", "--prompt", "1 50 60", "--new", "6", "--temperature", "0"]
    assert ask(capsys, "generate", run, *question)[1] == ask(capsys, "generate", tmp_path / "out", *question)[1]


def test_loss_of_text_is_that_of_every_token_by_itself(one_device, tmp_path, monkeypatch):
    """Each token once, with what stands before it in its row and document; bytes are those of the files."""
    model = made(zoo.gpt2(**SIZES), one_device)
    text = tmp_path / "text.txt"
    text.write_text("äh, one.\n\nAnd two, which is longer.")
    tokenizer = ByteTokenizer()
    monkeypatch.setattr(Trained, "language", lambda self, _: of_tokenizer(tokenizer, paired=False))
    with jax.set_mesh(one_device):
        trained = Trained(place=Place(tmp_path), model=model)
        found = scores.of_text(trained, [str(text)], scores.Documents.PARAGRAPH, batch=3, length=10)
        stream = [1, *tokenizer.encode("äh, one."), 1, *tokenizer.encode("And two, which is longer.")]
        contexts, expected = [], []
        for place, token in enumerate(stream):
            if token != 1:
                before = stream[(place - 1) // 10 * 10 : place]  # what stands before it in its row
                last = max((index for index, earlier in enumerate(before) if earlier == 1), default=0)
                contexts.append(before[last:])  # and in its document
                expected.append(token)
        padded = np.asarray([[*context, *[0] * (10 - len(context))] for context in contexts], np.int32)
        scored = jax.jit(lambda model: jax.nn.log_softmax(model.logits(model(padded))))(model)
    nats = -sum(float(scored[row, len(contexts[row]) - 1, token]) for row, token in enumerate(expected))
    count = len(expected)
    octets = len("äh, one.And two, which is longer.".encode())
    assert (found["predictions"], found["bytes"]) == (count, octets)
    assert found["loss"] == pytest.approx(nats / count, rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / octets, rel=1e-4)


TINY = ["--steps", "2", "--model.width", "16", "--model.depth", "1", "--model.heads", "2"]


@pytest.mark.slow
def test_translations_are_compared_with_the_held_out_ones(tmp_path, capsys, monkeypatch):
    class Exact:
        """In place of sacrebleu: the share of sentences that are the same."""

        def corpus_score(self, said, references):
            self.said, (self.references,) = said, references
            share = np.mean([one == other for one, other in zip(said, self.references, strict=True)])
            return type("Score", (), {"score": float(share)})

        def get_signature(self):
            return "exact"

    monkeypatch.setattr(scores, "need_sacrebleu", lambda metric=Exact(): metric)
    folder = pairs_run(tmp_path, *TINY)
    capsys.readouterr()
    measured = json.loads(ask(capsys, "evaluate", folder, "--bleu", "--beams", "2", "--json")[1])
    pairs = {tuple(line.split("\t")) for line in (tmp_path / "pairs.tsv").read_text().splitlines()[1:]}
    metric = scores.need_sacrebleu()
    assert {(source, target) for source, target in zip(metric.said, metric.references, strict=True)} <= pairs
    assert measured["pairs"] == len(metric.references) > 20
    same = np.mean([source == target for source, target in zip(metric.said, metric.references, strict=True)])
    assert measured["bleu_of_copying"] == pytest.approx(same)
    assert measured["bleu"] < 1
    assert measured["signature"] == "exact"


@pytest.mark.slow
def test_a_toy_language_is_learned(tmp_path, capsys):
    pytest.importorskip("sacrebleu", reason="needs the package sacrebleu: the extra `bleu`")
    sizes = ["--model.width", "64", "--model.depth", "2", "--model.heads", "4", "--batch", "32"]
    folder = pairs_run(tmp_path, *sizes, "--steps", "500", "--schedule.peak", "1e-3")
    capsys.readouterr()
    measured = json.loads(ask(capsys, "evaluate", folder, "--bleu", "--json")[1])
    assert measured["bleu"] > 20 > 5 > measured["bleu_of_copying"]
    said = ask(capsys, "generate", folder, "--prompt", "the red house", "--beams", "4")[1]
    assert sorted(said.split()) == ["casa", "la", "rojo"]  # the order is what is learned last
    with capsys.disabled():
        print(measured)


def test_what_is_wrong_with_a_folder_is_one_line(theirs, run, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(theirs, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("transformer.ln_f.bias")
    save_file(tensors, broken / "model.safetensors")
    imported = tmp_path / "imported"
    assert ask(capsys, "import", theirs, "-o", imported)[0] == 0
    for arguments, said in (
        (["import", broken, "-o", tmp_path / "x"], "1 tensors are missing, the first is 'transformer.ln_f.bias'"),
        (["import", tmp_path, "-o", tmp_path / "x"], "is not the folder of a model (no config.json)"),
        (["import", theirs, "-o", imported], "holds an imported model already"),
        (["export", imported, theirs], "not an empty folder"),
        (["export", tmp_path, tmp_path / "x"], "holds no model: it has no run.json"),
        (["generate", tmp_path, "--prompt", "a"], "holds no model"),
        (["generate", run.parent, "--prompt", "a"], f"of the runs in it, {run} is one"),
        (["generate", f"{run}x", "--prompt", "a"], f"there is no folder {run}x; did you mean '{run}'?"),
        (["generate", imported, "--prompt", "a"], "has no tokenizer (no tokenizer.json); give token ids instead"),
        (["generate", imported, "--ids", "--prompt", "a b"], "'a b' are not token ids"),
        (["generate", imported, "--ids", "--prompt", "5 300"], "each from 0 to 299"),
        (["generate", imported, "--ids", "--prompt", "5", "--new", "80"], "learned positions for 64 places, not 80"),
        (["generate", run, "--top-p", "2"], "top_p 2 must be a probability"),
        (["generate", run, "--beams", "2", "--top-k", "5"], "a search draws nothing"),
        (["generate", run, "--beams", "2", "--samples", "5"], "no more than --beams"),
        (["generate", run, "--mesh", "tnsor=2"], "did you mean 'tensor'?"),
        (["evaluate", imported], "has no held-out rows; say with --data on what"),
        (["evaluate", run, "--data", tmp_path / "nowhere.txt"], "no file matches"),
        (["evaluate", run, "--prepared", tmp_path], "holds no prepared data"),
    ):
        status, _, error = ask(capsys, *arguments)
        assert status == 1, arguments
        assert said in error
    assert not (tmp_path / "x").exists()


def test_an_encoder_writes_nothing(tmp_path, one_device, capsys):
    with jax.set_mesh(one_device):
        pretrained.save(tmp_path / "bert", made(zoo.bert(**SIZES), one_device))
    status, _, error = ask(capsys, "generate", tmp_path / "bert", "--ids", "--prompt", "5")
    assert status == 1
    assert "bert is an encoder, which cannot write" in error


def test_packages_that_are_not_there_are_named(theirs, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    folder = tmp_path / "tiny"
    shutil.copytree(theirs, folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "needs the package tokenizers" in ask(capsys, "generate", folder, "--prompt", "a")[2]
    assert "needs the package sacrebleu" in ask(capsys, "evaluate", run, "--bleu")[2]
