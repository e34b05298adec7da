"""Sweeps are pure; nothing is done twice; one cell's failure is that cell's alone."""

import re
import resource
import socket
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import pytest
from training_cases import ARCHITECTURE, LENGTH

from experiments import train as trainer
from experiments.launch.local import Status
from experiments.runs import Cell, RunFolder, table
from experiments.sweep import FEWEST_STEPS, RateRule, at_budget, execute, isoflop, total_flops, unfinished
from models import zoo

SMALLER = zoo.decoder(width=8, depth=1, heads=2, vocab=260, length=LENGTH)


def flops_per_step(run, architecture):
    return architecture.cost(LENGTH).flops_per_token * run.batch_tokens


def budget_of(run, steps):
    return steps * flops_per_step(run, ARCHITECTURE)


def carry_out(cells, root, prepared, workers=0, **placement):
    """What `execute` tells: status and reason of each cell that it took up."""
    told = []

    def on_outcome(cell, outcome):
        told.append((cell.run.identity, outcome.status, outcome.reason))

    execute(cells, root, prepared, placement=placement, workers=workers, on_outcome=on_outcome)
    return told


def times(root):
    return {path: path.stat().st_mtime_ns for path in Path(root).rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# Made: a pure function


def test_budgets_are_met_within_half_a_step(run):
    sizes = {budget: [ARCHITECTURE, SMALLER] for budget in (1e9, 3.3e9, 1.7e10)}
    cells = isoflop("s", run, sizes, seeds=(0, 1))
    assert len(cells) == 12
    assert len({cell.run.identity for cell in cells}) == 12
    for cell in cells:
        spent = cell.run.cost.flops(cell.run.tokens)
        assert abs(spent - cell.budget) <= 0.5 * flops_per_step(run, cell.run.architecture)
    assert total_flops(cells) == pytest.approx(4 * (1e9 + 3.3e9 + 1.7e10), rel=0.01)


def test_making_a_sweep_touches_no_file_and_no_device(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = mock.Mock(side_effect=AssertionError("a sweep is pure"))
    with (
        mock.patch("builtins.open", broken),
        mock.patch.object(Path, "open", broken),
        mock.patch.object(jax, "devices", broken),
        mock.patch.object(socket, "socket", broken),
    ):
        one, other = (isoflop("s", run, {1e9: [ARCHITECTURE, SMALLER]}, rule=RateRule()) for _ in range(2))
    assert one == other
    assert list(tmp_path.iterdir()) == []


def test_a_budget_too_small_says_what_would_do(run):
    least = FEWEST_STEPS * flops_per_step(run, ARCHITECTURE)
    assert at_budget(run, ARCHITECTURE, least, None).steps == FEWEST_STEPS
    with pytest.raises(ValueError, match="7,280 parameters, fewer than 50; take a larger budget") as caught:
        at_budget(run, ARCHITECTURE, least * 0.9, None)
    assert f"from {least:.2g}" in str(caught.value)


def test_the_rate_follows_its_rule_or_the_template(run):
    rule = RateRule(coefficient=0.02, size_exponent=-0.5, steps_exponent=-0.25)
    assert rule.peak(ARCHITECTURE, 16_000) == pytest.approx(0.02 * (7280 / 1e5) ** -0.5 * 0.5, rel=5e-3)
    cell, kept = (at_budget(run, ARCHITECTURE, 1e9, choice) for choice in (rule, None))
    assert cell.schedule == replace(run.schedule, peak=rule.peak(ARCHITECTURE, cell.steps))
    assert kept.schedule == run.schedule
    assert replace(cell, schedule=run.schedule, steps=run.steps) == run


# ---------------------------------------------------------------------------------------------------------------------
# Carried out


@pytest.fixture(scope="module")
def cells(run):
    """Two sizes at one budget."""
    return isoflop("first", run, {budget_of(run, 60): [ARCHITECTURE, SMALLER]})


@pytest.fixture(scope="module")
def done(cells, prepared, tmp_path_factory):
    """A folder in which both are finished."""
    root = tmp_path_factory.mktemp("sweep")
    told = carry_out(cells, root, prepared)
    assert [status for _, status, _ in told] == [Status.DONE] * 2
    return root


def test_the_largest_cell_comes_first_and_once(run, tmp_path):
    small, large = (Cell(run=replace(run, steps=steps), sweep="s", budget=1.0) for steps in (50, 500))
    assert unfinished([small, large, small], tmp_path) == [large, small]


def test_finished_cells_are_never_redone(cells, prepared, done):
    before = times(done)
    with mock.patch.object(trainer, "train", side_effect=AssertionError("trained again")):
        assert carry_out(cells, done, prepared) == []
    assert times(done) == before
    rows = table(cells, done)
    assert [row["status"] for row in rows] == ["done", "done"]
    assert all(0 < row["loss"] < 5.6 and row["loss_se"] > 0 for row in rows)


@pytest.mark.slow
def test_a_run_that_two_sweeps_share_is_done_once(run, cells, prepared, done):
    second = isoflop("second", run, {budget_of(run, 60): [ARCHITECTURE], budget_of(run, 70): [ARCHITECTURE]})
    before = times(done)
    told = carry_out(second, done, prepared)
    assert [identity for identity, _, _ in told] == [second[1].run.identity]
    assert {path: times(done)[path] for path in before} == before
    assert [row["sweep"] for row in table([*cells, *second], done)] == ["first", "first", "second", "second"]


def test_a_run_that_diverges_is_marked_and_the_sweep_goes_on(run, cells, prepared, done, tmp_path):
    wild = replace(run, steps=90, schedule=replace(run.schedule, peak=1e6))
    root, sweep = tmp_path, [Cell(run=wild, sweep="s", budget=1.0), cells[0]]
    told = carry_out(sweep, root, prepared)
    assert [(identity, status) for identity, status, _ in told] == [
        (wild.identity, Status.FAILED),
        (cells[0].run.identity, Status.DONE),
    ]
    failed, finished = table(sweep, root)
    assert failed["status"] == "failed"
    measured = r"step \d+ of 90: loss \S+, gradient norm \S+; the learning rate may be too high"
    assert re.fullmatch(measured, failed["reason"])
    assert "nan" in failed["reason"] or "inf" in failed["reason"]
    assert "loss" not in failed
    assert not (root / wild.identity / "result.json").exists()
    # The other cell is what it is without a failure beside it.
    assert finished["loss"] == table(cells, done)[0]["loss"]
    # It would fail again, so it is not tried again.
    before = times(root)
    assert carry_out(sweep, root, prepared) == []
    assert times(root) == before


def test_a_run_stopped_by_the_disk_is_tried_again(cells, prepared, tmp_path):
    sweep, real = [cells[0]], trainer.evaluate
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    with mock.patch.object(trainer, "evaluate", full):
        assert [status for _, status, _ in carry_out(sweep, tmp_path, prepared)] == [Status.FAILED]
    (row,) = table(sweep, tmp_path)
    assert (row["status"], row["reason"]) == ("failed", "OSError: [Errno 28] No space left on device")
    assert unfinished(sweep, tmp_path) == sweep
    assert trainer.evaluate is real
    assert [status for _, status, _ in carry_out(sweep, tmp_path, prepared)] == [Status.DONE]
    (row,) = table(sweep, tmp_path)
    assert row["status"] == "done"
    assert "reason" not in row


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_cannot_be_written_is_one_clear_line(cells, prepared, tmp_path, workers):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^folder of runs .*file/runs cannot be written: Not a directory$"):
        carry_out(cells, tmp_path / "file" / "runs", prepared, workers=workers)


def test_a_disk_too_full_for_the_reason_does_not_stop_the_sweep(cells, prepared, tmp_path):
    """One run's folder is a regular file: neither the run nor the reason of its failure can be written there."""
    (tmp_path / cells[0].run.identity).write_text("")
    told = {identity: (status, reason) for identity, status, reason in carry_out(cells, tmp_path, prepared)}
    status, reason = told[cells[0].run.identity]
    assert status is Status.FAILED
    assert f"run folder {tmp_path / cells[0].run.identity} cannot be written: " in reason
    assert told[cells[1].run.identity] == (Status.DONE, None)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on the size of files")
def test_a_disk_that_fills_up_in_mid_run(run, prepared, tmp_path):
    """Files of this process may not grow past 6 kB: room for run.json and metrics, not for a checkpoint's arrays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = RunFolder(tmp_path / "run")
    settings = dict(placement=trainer.Placement(checkpoint_steps=6), devices=jax.devices()[:1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not write the checkpoint of step 6 in .*/run/checkpoints") as caught:
            trainer.train(run, folder, prepared, **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert folder.result() is None
    assert folder.run() == run


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        ({}, "data=3", r"mesh data=3 needs 3 devices and there are 8$"),
        ({}, "fsdp=4,expert=4", r"needs 16 devices and there are 8; to try .* --devices 16 -- train"),
        ({}, "data=-1,tensor=3", r"needs a multiple of 3 devices and there are 8"),
        ({}, "fsdq=8", r"mesh axis 'fsdq' does not exist; did you mean 'fsdp'\?"),
        ({"batch": 12}, "", r"a batch of 12 rows cannot be shared equally by 8 devices \(data\)"),
        ({}, "data=2,tensor=4", r"2 heads \(2 key/value heads\) cannot be split over tensor=4; choose a tensor size"),
        ({"rows": "f" * 16}, "", r"is of rows ffffffffffffffff, and .* holds "),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_computed(run, prepared, tmp_path, changes, mesh, message):
    with pytest.raises(ValueError, match=message):
        trainer.train(replace(run, **changes), RunFolder(tmp_path), prepared, placement=trainer.Placement(mesh=mesh))


def test_parts_that_do_not_divide_the_batch(run, prepared, tmp_path):
    with pytest.raises(ValueError, match=r"by 1 devices x 3 parts; choose a multiple of 3"):
        trainer.train(
            run, RunFolder(tmp_path), prepared, placement=trainer.Placement(accumulate=3), devices=jax.devices()[:1]
        )


@pytest.mark.slow
def test_workers_give_the_bits_of_this_process(cells, prepared, tmp_path):
    told = carry_out(cells, tmp_path / "workers", prepared, workers=2)
    assert [status for _, status, _ in told] == [Status.DONE] * 2
    for cell in cells:
        trainer.train(cell.run, RunFolder(tmp_path / "here" / cell.run.identity), prepared, devices=jax.devices()[:1])
    assert table(cells, tmp_path / "workers") == table(cells, tmp_path / "here")
