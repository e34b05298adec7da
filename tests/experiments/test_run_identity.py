"""What a run is: the same identity wherever it is computed or its text lies, another for every other result."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest

from experiments.configuration import from_json, to_json
from experiments.data.packed import DataConfig
from experiments.data.sources import Embedded, TextFiles
from experiments.data.tokenizer import Kind, TokenizerConfig
from experiments.objectives import Masked, Vocabulary
from experiments.optimizer import AdamW, Schedule
from experiments.runs import Cell, Run, RunFolder, curves, table, write_csv
from models import zoo
from models.feedforward import Activation
from models.head import Classifier, Transform
from models.layers import RMS_NORM
from models.positions import LlamaScaling, RelativeBias

RUN = Run(
    architecture=zoo.gpt2(width=16, depth=2, heads=2, vocab=260, length=16, kv_heads=1, dropout=0.1),
    data=DataConfig(source=TextFiles(paths=("text.txt",)), tokenizer=TokenizerConfig(kind=Kind.BYTES), length=16),
    rows="0123456789abcdef",
    schedule=Schedule(peak=0.01),
    batch=4,
    steps=100,
    evaluation_rows=8,
)
GOLDEN = "a74c5f07ff06"


def test_golden_identity():
    """Results on disk are found by this number.

    If it changes, every finished run is trained again. That is right when results would be other ones (initial values,
    order of the data, what a setting means); then copy the new number and say so in the commit. It is wrong when a
    class or a setting was only renamed or added: let the default of a new setting be left out of the hash instead.
    """
    assert RUN.identity == GOLDEN, f"the identity was {GOLDEN}, is {RUN.identity}"


def test_identity_does_not_depend_on_where_text_and_tokenizer_lie():
    elsewhere = replace(RUN.data, source=TextFiles(paths=("/other/place/text.txt",)))
    assert replace(RUN, data=elsewhere).identity == RUN.identity
    assert replace(RUN, data=replace(RUN.data, source=Embedded())).identity == RUN.identity
    paths = [replace(RUN.data, tokenizer=TokenizerConfig(kind=Kind.FILE, path=path)) for path in ("a.model", "b.model")]
    assert len({replace(RUN, data=data).identity for data in paths}) == 1
    # Other text is other rows.
    assert replace(RUN, rows="f" * 16).identity != RUN.identity


def leaves(value, path=()):
    """Every plain setting below a configuration, by path."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def with_leaf(value, path, new):
    if not path:
        return new
    if isinstance(value, tuple):
        items = list(value)
        items[path[0]] = with_leaf(items[path[0]], path[1:], new)
        return tuple(items)
    return replace(value, **{path[0]: with_leaf(getattr(value, path[0]), path[1:], new)})


def others(value):
    """Values of the same kind, one of which will be allowed."""
    if isinstance(value, Enum):
        return [member for member in type(value) if member is not value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value + 1, 1]
    if isinstance(value, float):
        return [value / 2, 0.5]
    if isinstance(value, str):
        return [value + "x"]
    # For None: one of them is of the kind that is wanted.
    transform = Transform(activation=Activation.TANH)
    return [RMS_NORM, 1.5, 4, 16, transform, Classifier(classes=2), RelativeBias(), LlamaScaling()]


def test_every_setting_that_defines_the_result_changes_the_identity():
    settings = {path: value for path, value in leaves(RUN) if path[:2] != ("data", "source")}
    del settings["data", "tokenizer", "path"]
    # An encoder, and attention to it, cannot be without each other: the other architecture stands for both.
    other = zoo.bert(width=16, depth=2, heads=2, vocab=260, length=16)
    masked = Masked(vocabulary=Vocabulary(size=260, extra=1))
    assert replace(RUN, architecture=other, objective=masked).identity != RUN.identity
    del settings["architecture", "encoder"], settings["architecture", "decoder", "pattern", 0, "cross"]
    # Only a pattern of several blocks can have a rest.
    stack = replace(RUN.architecture.decoder, pattern=RUN.architecture.decoder.pattern * 2)
    stacks = [with_leaf(RUN, ("architecture", "decoder"), replace(stack, rest=rest)) for rest in (0, 1)]
    assert len({run.identity for run in stacks}) == 2
    del settings["architecture", "decoder", "rest"]
    assert len(settings) > 45
    seen = {RUN.identity: ()}
    for path, value in settings.items():
        for new in others(value):
            if new == value:
                continue
            try:
                identity = with_leaf(RUN, path, new).identity
            except ValueError:
                continue
            assert identity not in seen, f"{path} has the identity of {seen[identity]}"
            seen[identity] = path
            break
        else:
            raise AssertionError(f"no other value of {path} is allowed")


def test_one_and_one_point_nought_are_one_setting():
    one, other = replace(RUN, optimizer=AdamW(clip=1)), replace(RUN, optimizer=AdamW(clip=1.0))
    assert one.identity == other.identity
    assert from_json(Run, json.loads(json.dumps(to_json(one)))).identity == one.identity


def test_identity_is_the_same_in_every_process():
    program = """
import json, sys
from experiments.configuration import from_json
from experiments.runs import Run
print(from_json(Run, json.loads(sys.argv[1])).identity)
"""
    command = [sys.executable, "-c", program, json.dumps(to_json(RUN))]
    processes = [
        subprocess.Popen(command, env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True)
        for seed in ("1", "2")
    ]
    assert {process.communicate()[0].strip() for process in processes} == {RUN.identity}


def test_columns_by_hand():
    columns = RUN.columns()
    assert columns["run"] == RUN.identity
    assert columns["tokens"] == 100 * 4 * 16
    assert columns["batch_tokens"] == 64
    # Embedding of 260 tokens and 16 positions; two layers of attention (one key/value head of 8), MLP and two norms; a
    # last norm.
    attention, mlp = 16 * 16 * 2 + 16 * 8 * 2 + 16 + 8 + 8 + 16, 2 * 16 * 64 + 64 + 16
    assert columns["params_nonembedding"] == 2 * (attention + mlp + 2 * 32) + 32
    assert columns["params"] == columns["params_nonembedding"] + 276 * 16
    assert columns["flops_6nd"] == 6 * columns["params"] * 6400
    assert columns["flops_kaplan"] == 6 * columns["params_nonembedding"] * 6400
    # Products with weights, a triangle of attention, and the head; three times for forward and backward.
    products = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 2 * 16 * 64) + 260 * 16
    assert columns["flops"] == 3 * (2 * products + 2 * 4 * 16 * 8.5) * 6400


def test_definitions_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="run: batch is 0 and must be at least 1"):
        replace(RUN, batch=0)
    with pytest.raises(ValueError, match="run: rows of 32 tokens are longer than the architecture's 16"):
        replace(RUN, data=replace(RUN.data, length=32))


def test_a_folder_tells_its_run(prepared, tmp_path):
    folder = RunFolder(tmp_path / "runs" / RUN.identity)
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run \(no run.json\)"):
        folder.run()
    folder.record(RUN, prepared)
    assert folder.run() == RUN
    assert (folder.result(), folder.failure(), folder.failed_for_good()) == (None, None, False)
    path = folder.path / "run.json"
    assert {entry.name for entry in folder.path.iterdir()} == {"run.json", "rows.json", "tokenizer.model"}
    path.write_text(path.read_text().replace('"batch": 4', '"bach": 4'))
    with pytest.raises(ValueError, match=r"run.json: Run has no setting 'bach'; did you mean 'batch'\?"):
        folder.run()
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"run.json is damaged: "):
        folder.run()


def test_rows_of_one_text_that_differ_are_noticed(prepared, tmp_path):
    """As those of a tokenizer that another version of its library trained: the fingerprint is the same."""
    folder, metadata = RunFolder(tmp_path / "run"), prepared.metadata
    folder.record(RUN, prepared)
    folder.record(RUN, prepared)
    changes = {
        "tokenizer": {"tokenizer_sha256": "0" * 64},
        "training rows": {"train": replace(metadata.train, sha256="1" * 64)},
        "held-out rows": {"held_out": replace(metadata.held_out, sha256="2" * 64)},
    }
    for what, change in changes.items():
        other = replace(prepared, metadata=replace(metadata, **change))
        assert other.fingerprint == prepared.fingerprint
        with pytest.raises(ValueError, match=rf"run was begun on other rows of the same text than .*\({what}: hash"):
            folder.record(RUN, other)
    (folder.path / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match=r"rows.json is damaged"):
        folder.record(RUN, prepared)


def test_a_result_takes_the_place_of_a_failure(tmp_path):
    folder = RunFolder(tmp_path)
    folder.fail("disk full", for_good=False)
    assert (folder.failure(), folder.failed_for_good()) == ("disk full", False)
    folder.fail("diverged", for_good=True)
    assert (folder.failure(), folder.failed_for_good()) == ("diverged", True)
    folder.finish({"loss": 2.5})
    assert (folder.failure(), folder.failed_for_good(), folder.result()) == (None, False, {"loss": 2.5})


def test_a_folder_that_cannot_be_written_is_named(prepared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^run folder .*file/run cannot be written: Not a directory$"):
        RunFolder(tmp_path / "file" / "run").record(RUN, prepared)


def test_table_and_curves(prepared, tmp_path):
    done, failed, waiting, held_out = (replace(RUN, seed=seed) for seed in range(4))
    cells = [Cell(run=run, sweep="s", budget=1e9) for run in (done, failed, waiting)]
    cells.append(Cell(run=held_out, sweep="s", budget=4e9, role="held-out"))
    for run in (done, failed, waiting, held_out):
        RunFolder(tmp_path / run.identity).record(run, prepared)
    for run, loss in ((done, 0.1 + 0.2), (held_out, 2.0)):
        folder = RunFolder(tmp_path / run.identity)
        folder.finish({"loss": loss, "loss_se": 0.01})
        folder.metrics.write_text('{"step": 50, "loss": 3.0}\n{"step": 100, "loss": 2.75}\n')
    RunFolder(tmp_path / failed.identity).fail("step 3: loss nan", for_good=True)

    rows = table(cells, tmp_path)
    assert [(row["run"], row["status"], row["role"]) for row in rows] == [
        (done.identity, "done", "sweep"),
        (failed.identity, "failed", "sweep"),
        (held_out.identity, "done", "held-out"),
    ]
    assert rows[1]["reason"] == "step 3: loss nan"
    assert "loss" not in rows[1]

    points = curves(cells, tmp_path)
    assert [(point["run"], point["tokens"], point["loss"]) for point in points] == [
        (done.identity, 3200, 3.0),
        (done.identity, 6400, 2.75),
    ]
    assert points[1]["flops"] == rows[0]["flops"]

    write_csv(tmp_path / "runs.csv", rows)
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    header = lines[0].split(",")
    assert float(lines[1].split(",")[header.index("loss")]) == 0.1 + 0.2
    assert lines[2].split(",")[header.index("loss")] == ""
    assert sorted(Path(tmp_path).glob(".runs.csv*")) == []
