"""What a training run writes while it goes on: lines, their number on resume, TensorBoard's files."""

import json
import struct

import numpy as np
import pytest

from experiments.metrics import MetricsLog, window_of
from experiments.runs import RunFailed, RunFolder


@pytest.fixture
def folder(tmp_path, run, prepared):
    made = RunFolder(tmp_path / run.identity)
    made.record(run, prepared)
    return made


def feed(log, first, losses):
    """One call's metrics, of which only as many as given are real."""
    padded = np.zeros(len(losses) + 2)
    padded[: len(losses)] = losses
    log.add(first, len(losses), {"loss": padded, "gradient_norm": padded / 2})


def lines(folder):
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_a_line_is_the_mean_of_a_window(folder, run):
    assert (window_of(run), run.batch_tokens) == (3, 128)
    log = MetricsLog(folder, run, from_step=0, tensorboard=False)
    feed(log, 0, [3.0, 4.0])
    assert log.last_loss is None
    feed(log, 2, [8.0])
    log.close()
    (line,) = lines(folder)
    assert (line["step"], line["loss"], line["gradient_norm"], line["tokens"]) == (3, 5.0, 2.5, 384)
    assert line["learning_rate"] == pytest.approx(float(run.schedule.rates(2, 1, steps=run.steps)[0]))


def test_lines_past_the_checkpoint_are_dropped_and_half_a_line_too(folder, run):
    log = MetricsLog(folder, run, from_step=0, tensorboard=False)
    for first in (0, 3, 6):
        feed(log, first, [1.0, 1.0, 1.0])
    log.close()
    folder.metrics.write_text(folder.metrics.read_text() + '{"step": 12')
    MetricsLog(folder, run, from_step=6, tensorboard=False).close()
    assert [line["step"] for line in lines(folder)] == [3, 6]


def test_a_loss_that_is_not_finite_names_its_step(folder, run):
    log = MetricsLog(folder, run, from_step=0, tensorboard=False)
    with pytest.raises(RunFailed, match=r"step 5 of 300: loss nan.*learning rate"):
        feed(log, 3, [1.0, np.nan])
    log.close()
    assert lines(folder) == []


def test_tensorboard_holds_the_same_numbers(folder, run):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs tensorboardX")
    log = MetricsLog(folder, run, from_step=0, tensorboard=True)
    for first, loss in ((0, 4.0), (3, 3.5)):
        feed(log, first, [loss] * 3)
    log.close()
    (file,) = (folder.path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # a record is its length, a checksum, the event, a checksum
        (size,) = struct.unpack("<Q", data[:8])
        event, data = event_pb2.Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    for line in lines(folder):
        for name in ("loss", "gradient_norm", "learning_rate", "tokens_per_second"):
            assert found[name, line["step"]] == pytest.approx(line[name], rel=1e-6)
    assert {step for _, step in found} == {3, 6}
