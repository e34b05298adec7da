"""Processes that train into a bucket, are killed at the worst moment, and go on where all disks are new."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from training_cases import metrics_in, outcomes_of, start_processes

from experiments.configuration import to_json
from experiments.runs import RunFolder

pytestmark = pytest.mark.slow


def train_on_machines(run, prepared, url, disks, *, storage, processes, devices, kill_at=None, refuse_from=None):
    """Trains in processes each of which has a disk of its own; the exit status and last words of each.

    All are killed at the moment at which the service is asked to make the checkpoint of a step from `kill_at` on
    complete. From that of step `refuse_from` on the service takes no more metrics.
    """
    shutil.rmtree(disks, ignore_errors=True)
    settings = {"mesh": f"fsdp={processes * devices}" if processes > 1 else "", "checkpoint_steps": 5}
    job = {"run": to_json(run), "url": url, "prepared": str(prepared.folder), "settings": settings}
    jobs = [job | {"folder": str(disks / str(process))} for process in range(processes)]
    started, reached = [], set()

    def refuse(method, bucket, name):
        found = re.search(r"checkpoints/(\d+)/commit_success.txt$", name)
        step = int(found[1]) if found and method == "POST" else 0
        if kill_at is not None and step >= kill_at:
            for process in started:
                process.kill()
            return 503
        reached.add(step)
        full = refuse_from is not None and max(reached) >= refuse_from
        return 403 if full and method == "POST" and name.endswith("/metrics.jsonl") else None

    storage.refuse = refuse
    started += start_processes(jobs, devices)
    return outcomes_of(started)


@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (2, 2)])
def test_killed_while_a_checkpoint_was_written(run, prepared, storage, bucket, tmp_path, processes, devices):
    short = replace(run, steps=24)
    settings = {"processes": processes, "devices": devices, "storage": storage}
    whole, cut = f"{bucket}/whole", f"{bucket}/cut"
    ended = train_on_machines(short, prepared, whole, tmp_path / "a", **settings)
    assert [each for each, _ in ended] == [0] * processes, ended

    killed = train_on_machines(short, prepared, cut, tmp_path / "b", kill_at=12, **settings)
    assert [each for each, _ in killed] == [-signal.SIGKILL] * processes
    names = storage.names(bucket.removeprefix("gs://"))
    steps = {name.split("/")[2] for name in names if name.startswith("cut/checkpoints/")}
    complete = {name.split("/")[2] for name in names if re.fullmatch(r"cut/checkpoints/\d+/commit_success.txt", name)}
    assert complete == {"5", "10"}
    assert steps == {"5", "10", "15"}
    assert "cut/result.json" not in names

    ended = train_on_machines(short, prepared, cut, tmp_path / "b", **settings)
    assert [each for each, _ in ended] == [0] * processes, ended
    found = {}
    for url in (whole, cut):
        folder = RunFolder(tmp_path / "looked" / url[-3:], url)
        folder.pull()
        found[url] = (folder.result(), metrics_in(folder.path))
    assert found[cut] == found[whole]
    assert len(found[whole][1]) == 24


def test_a_bucket_that_refuses_ends_all_processes(run, prepared, storage, bucket, tmp_path):
    settings = {"processes": 2, "devices": 1, "storage": storage, "refuse_from": 5}
    began = time.monotonic()
    outcomes = train_on_machines(replace(run, steps=24), prepared, f"{bucket}/run", tmp_path / "disks", **settings)
    assert time.monotonic() - began < 150
    assert all(status not in (0, -signal.SIGKILL) for status, _ in outcomes)
    assert f"{bucket}/run cannot be written: permission denied" in outcomes[0][1]


SWEEP = ["sweep", "--budgets", "5e9", "--sizes", "3", "--tokens-per-param", "2", "60", "--share", "0/1"]
SMALL = ["--data.tokenizer", "bytes", "--data.length", "32", "--evaluation-rows", "16"]


def sweep_into(output, text, home, *, workers):
    command = [sys.executable, "-m", "experiments.cli", *SWEEP, *SMALL, "--data.text", str(text), "-o", str(output)]
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    return subprocess.Popen([*command, "--workers", str(workers)], env=environment)


def test_a_sweep_goes_on_where_the_disk_is_new(storage, bucket, tmp_path):
    text, name = tmp_path / "text.txt", bucket.removeprefix("gs://")
    text.write_text("\n\n".join(f"Paragraph {i} says that {i} times {i} is {i * i}." for i in range(2000)))
    assert sweep_into(tmp_path / "here", text, tmp_path / "home", workers=1).wait(timeout=240) == 0
    local = {path.parent.name: json.loads(path.read_bytes()) for path in tmp_path.glob("here/cells/*/result.json")}
    assert len(local) == 3

    def results():
        names = [each for each in storage.names(name) if each.endswith("/result.json")]
        return {each.split("/")[-2]: json.loads(storage.buckets[name][each][0]) for each in names}

    def refuse(method, bucket, name):
        if method == "POST" and name.endswith("/result.json") and len(results()) == 1:
            first.kill()
            return 503
        return None

    storage.refuse = refuse
    first = sweep_into(f"{bucket}/sweep", text, tmp_path / "one", workers=1)
    assert first.wait(timeout=240) == -signal.SIGKILL
    finished = results()
    assert len(finished) == 1

    storage.refuse = lambda *request: None
    asked = len(storage.requests)
    assert sweep_into(f"{bucket}/sweep", text, tmp_path / "other", workers=2).wait(timeout=240) == 0
    assert results() == local
    posted = (each for method, _, each in storage.requests[asked:] if method == "POST" and "/cells/" in each)
    written = {each.split("/")[2] for each in posted}
    assert written == local.keys() - finished.keys()
