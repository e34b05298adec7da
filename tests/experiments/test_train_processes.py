"""Two processes with four devices each train as one process with eight."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from training_cases import losses, metrics_in, outcomes_of, start_processes, train_to_end

from experiments.configuration import to_json
from experiments.metrics import window_of


def train_in_processes(
    run, folder, prepared, *, processes=2, devices=4, hangs=None, hangs_at=None, rows=None, **settings
):
    """The status and standard error of each process; process `hangs` gets no further than step `hangs_at`.

    `rows` are folders of rows of each process, which otherwise read the same ones.
    """
    job = {"run": to_json(run), "folder": str(folder), "settings": settings}
    jobs = [
        job | {"prepared": str(where), "hangs_at": hangs_at if process == hangs else None}
        for process, where in enumerate(rows or [prepared.folder] * processes)
    ]
    return outcomes_of(start_processes(jobs, devices))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "fsdp=4,tensor=2"])
def test_two_processes_train_as_one(run, prepared, tmp_path, mesh):
    """To 1e-6 relative in the training losses, with checkpoints saved by both on the way."""
    short = replace(run, steps=12)
    assert window_of(short) == 1
    outcomes = train_in_processes(short, tmp_path / "two", prepared, mesh=mesh, checkpoint_steps=5)
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    one = train_to_end(short, tmp_path / "one", prepared, devices=8, mesh=mesh)
    result = json.loads((tmp_path / "two" / "result.json").read_bytes())
    assert result == pytest.approx(one.result, rel=1e-6)
    found = [line["loss"] for line in metrics_in(tmp_path / "two")]
    np.testing.assert_allclose(found, losses(one)[:-1], rtol=1e-6)
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir()) == ["10", "12"]
    # What two processes saved, one goes on with.
    (tmp_path / "two" / "result.json").unlink()
    again = train_to_end(short, tmp_path / "two", prepared, devices=8, mesh=mesh)
    np.testing.assert_allclose(losses(again), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_and_says_where(run, prepared, tmp_path):
    began = time.monotonic()
    outcomes = train_in_processes(replace(run, steps=12), tmp_path, prepared, hangs=1, hangs_at=6, patience=25.0)
    assert time.monotonic() - began < 120
    assert all(status != 0 for status, _ in outcomes)
    assert "process 1 of 2 on " in outcomes[1][1]
    assert "nothing for 25 s after step 6 of 12; giving up" in outcomes[1][1]
    assert "in <lambda>" in outcomes[1][1]  # where it hangs


@pytest.mark.slow
def test_processes_do_not_train_together_on_rows_that_differ(run, prepared, tmp_path):
    """Each machine makes its own: here one has another tokenizer, and so other rows of the same text."""
    other = tmp_path / "other"
    shutil.copytree(prepared.folder, other)
    metadata = json.loads((other / "metadata.json").read_bytes())
    (other / "metadata.json").write_text(json.dumps(metadata | {"tokenizer_sha256": "0" * 64}))
    settings = {"devices": 1, "rows": [prepared.folder, other], "mesh": "data=2"}
    outcomes = train_in_processes(replace(run, steps=12), tmp_path / "run", prepared, **settings)
    assert all(status != 0 for status, _ in outcomes)
    assert all("differ between the machines of this run" in said for _, said in outcomes)
