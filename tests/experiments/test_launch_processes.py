"""Several processes on this machine as one run: watched over, stopped, killed, resumed; equal to one process."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from training_cases import metrics_in, text

from experiments.cli import main
from experiments.launch import processes
from experiments.launch.processes import Local, _free_port
from parallel.distributed import detect
from parallel.ending import worth_restarting

ROOT = Path(__file__).parents[2]

# Stands in for the command: what it does is told by its arguments, a word for each process.
MEMBER = """
import os, signal, sys, time
from experiments.launch.worker import die_with_parent
die_with_parent(int(sys.argv[1]))
me = int(os.environ["SCALING_PROCESS"])
what = sys.argv[2:][me]
def save(*_):
    print("saved")
    sys.exit(130)
if what != "stubborn":
    signal.signal(signal.SIGTERM, save)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid(), what, flush=True)
if what == "fail":
    sys.exit("of its own")
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what != "end":
    time.sleep(60)
"""


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(processes, "MEMBER", ("-c", MEMBER))


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_processes_are_told_who_they_are(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=8")
    environments = Local(processes=3, devices=2).environments("127.0.0.1:9")
    clusters = [detect(environment) for environment in environments]
    assert [(cluster.process, cluster.processes, cluster.coordinator) for cluster in clusters] == [
        (process, 3, "127.0.0.1:9") for process in range(3)
    ]
    assert {each["XLA_FLAGS"] for each in environments} == {"--xla_a=1 --xla_force_host_platform_device_count=2"}


def test_output_is_passed_on_behind_the_number(stand_in, capsys):
    assert Local(processes=2).launch(["end", "end"]) == 0
    out, error = capsys.readouterr()
    assert sorted(re.sub(r"\d{2,}", "N", line) for line in out.splitlines()) == ["[0] pid N end", "[1] pid N end"]
    assert error == ""


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [("fail", 1, "process 1 of 3 ended with status 1"), ("die", 137, "process 1 of 3 was killed by SIGKILL")],
)
def test_one_that_fails_ends_all(stand_in, capsys, monkeypatch, what, status, said):
    monkeypatch.setattr(processes, "LAST_WORDS", 0.3)
    began = time.monotonic()
    assert Local(processes=3).launch(["wait", what, "stubborn"]) == status
    assert time.monotonic() - began < 10
    out, error = capsys.readouterr()
    assert error.splitlines()[-1] == f"scaling launch: {said}; the others were ended"
    assert len([line for line in error.splitlines() if "scaling launch" in line]) == 1
    assert ("[1] of its own" in error) == (what == "fail")
    assert all(gone(int(pid)) for pid in re.findall(r"pid (\d+)", out))


LAUNCHER = """
    import signal, sys
    from experiments.launch import processes
    signal.signal(signal.SIGINT, signal.default_int_handler)
    processes.MEMBER = ("-c", sys.argv[1])
    sys.exit(processes.Local(processes=2, grace=1.0).launch(sys.argv[2:]))
"""


def launcher(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LAUNCHER), MEMBER, *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    lines = [started.stdout.readline() for _ in words]
    return started, [int(re.search(r"pid (\d+)", line)[1]) for line in lines]


@pytest.mark.parametrize(
    ("word", "saved", "number"), [("wait", 2, signal.SIGTERM), ("stubborn", 0, signal.SIGINT)], ids=["wait", "stubborn"]
)
def test_a_request_to_stop_is_passed_on(word, saved, number):
    """As a terminal does it: to the whole process group, of which the processes are no part."""
    started, pids = launcher(word, word)
    os.killpg(started.pid, number)
    out, error = started.communicate(timeout=20)
    assert started.returncode == 130
    assert out.count("saved") == saved
    assert "stopping: the processes save their work" in error
    assert all(gone(pid) for pid in pids)


def test_processes_end_with_their_launcher():
    started, pids = launcher("wait", "stubborn")
    started.kill()
    started.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "trian"], "did you mean 'train'?"),
        (["--processes", "3", "train", "--steps", "5"], "after --: scaling launch local ... -- train ..."),
        (["--", "train", "-o", "s3://b/x"], "-o s3://b/x: several processes keep checkpoints in gs://bucket/folder"),
        ([], "give what is to run after --: train or sweep"),
        (["--", "fit", "runs.csv"], "there are train and sweep"),
        (["--", "sweep", "--budgets", "1e9"], "scaling sweep --workers N"),
        (["--processes", "0", "--", "train"], "both must be at least 1"),
    ],
)
def test_mistakes_are_answered_before_anything_starts(arguments, said, capsys):
    assert main(["launch", "local", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--stepz", "10", "--steps"), ("--placement.mesh", "fdsp=2", "did you mean 'fsdp'?")],
)
def test_a_mistake_in_the_command_itself_is_told_here(option, value, said, capsys):
    with pytest.raises(SystemExit):
        main(["launch", "local", "--", "train", option, value])
    assert said in "".join(capsys.readouterr())


def test_a_place_that_there_is_not(capsys):
    for place, said in (("slrum", "did you mean 'slurm'?"), ("moon", "there are local, slurm, tpu, gke, join")):
        assert main(["launch", place, "--", "train"]) == 1
        assert said in capsys.readouterr().err


def test_dry_run_shows_the_command_lines(capsys):
    assert main(["launch", "local", "--processes", "2", "--dry-run", "--", "train", "--data.text", "a b.txt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"SCALING_PROCESS=(\d)", line)[1] for line in lines] == ["0", "1"]
    assert all(line.endswith("-m experiments.cli train --data.text 'a b.txt'") for line in lines)


def test_join_becomes_the_process(capsys):
    flags = ["--coordinator", "10.0.0.7:99", "--processes", "4", "--process", "3"]
    assert main(["launch", "join", *flags, "--dry-run", "--", "train"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("SCALING_COORDINATOR=10.0.0.7:99 SCALING_PROCESSES=4 SCALING_PROCESS=3 ")
    assert main(["launch", "join", *flags[:-1], "4", "--", "train"]) == 1
    assert "no process 4 of 4" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Real runs


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text())
    return path


class Launched:
    """`scaling launch local` of a tiny run, in a process of its own."""

    def __init__(self, words, output, processes, devices, *options, steps=10):
        tiny = "--data.documents line --data.tokenizer bytes --data.length 16 --model.width 16 --model.depth 1"
        command = f"train --data.text {words} {tiny} --model.heads 2 --batch 8 --steps {steps} -o {output}".split()
        self.output = output
        self.processes = processes
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", "launch", "local", "--processes", str(processes)]
            + ["--devices", str(devices), "--", *command, *options],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self, timeout=600):  # of a machine that has other work too
        try:
            self.out, self.error = self.process.communicate(timeout=timeout)
        finally:
            self.process.terminate()
        return self.process.returncode

    def ended(self):
        assert self.end() == 0, self.error
        return self

    def folder(self):
        (found,) = self.output.glob("*/run.json")
        return found.parent

    def losses(self):
        result = json.loads((self.folder() / "result.json").read_bytes())
        return np.asarray([line["loss"] for line in metrics_in(self.folder())] + [result["loss"]])

    def saved(self):
        return sorted(int(path.name) for path in self.output.glob("*/checkpoints/*") if path.name.isdecimal())

    def wait_for(self, ready):
        deadline = time.monotonic() + 300
        while not ready():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def children(self):
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(listed) == self.processes
        return [int(pid) for pid in listed]


@pytest.mark.slow
def test_who_loses_another_process_asks_for_another_start(words, tmp_path):
    """Where no launcher sees both, as on Kubernetes: one is killed, and the other ends by itself, with that status."""
    tiny = "--data.documents line --data.tokenizer bytes --data.length 16 --model.width 16 --model.depth 1"
    train = f"train --data.text {words} {tiny} --model.heads 2 --steps 100000 -o {tmp_path / 'out'}".split()
    join = f"launch join --coordinator 127.0.0.1:{_free_port()} --processes 2 --process".split()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", *join, str(number), "--", *train],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not [path for path in tmp_path.glob("out/*/metrics.jsonl") if path.read_text()]:
            assert time.monotonic() < deadline
            assert both[0].poll() is None, both[0].communicate()[1]
            time.sleep(0.1)
        both[1].kill()
        said = both[0].communicate(timeout=60)[1]
    finally:
        for process in both:
            process.kill()
    assert worth_restarting(both[0].returncode if both[0].returncode > 0 else 128 - both[0].returncode), said


@pytest.mark.slow
def test_two_and_four_processes_train_as_one_and_repeat_bit_for_bit(words, tmp_path):
    one = Launched(words, tmp_path / "1x8", 1, 8).ended().losses()
    assert len(one) == 11
    for processes_, devices in ((2, 4), (4, 2)):
        launched = Launched(words, tmp_path / f"{processes_}x{devices}", processes_, devices).ended()
        np.testing.assert_allclose(launched.losses(), one, rtol=1e-6)
        said = [line for line in launched.error.splitlines() if "(as told)" in line]
        assert len(said) == processes_
        assert launched.out.count("held-out loss") == 1, "only one process tells the result"
    again = Launched(words, tmp_path / "again", 4, 2).ended().losses()
    assert again.tobytes() == launched.losses().tobytes()


@pytest.mark.slow
def test_killed_resumed_and_read_by_one(words, tmp_path):
    options, steps = ("--placement.checkpoint-steps", "20"), 160
    whole = Launched(words, tmp_path / "whole", 4, 2, *options, steps=steps).ended().losses()
    broken = Launched(words, tmp_path / "broken", 4, 2, *options, steps=steps)
    broken.wait_for(lambda: broken.saved())
    began = time.monotonic()
    os.kill(broken.children()[2], signal.SIGKILL)
    assert broken.end() == 137
    assert time.monotonic() - began < 60
    assert (
        broken.error.splitlines()[-1] == "scaling launch: process 2 of 4 was killed by SIGKILL; the others were ended"
    )
    assert not (broken.folder() / "result.json").exists()
    assert broken.saved()[-1] < steps
    # What four processes saved, one with as many devices goes on with; so do four, to the same bits.
    subprocess.run(["cp", "-r", tmp_path / "broken", tmp_path / "read"], check=True)
    resumed = Launched(words, tmp_path / "broken", 4, 2, *options, steps=steps).ended().losses()
    assert resumed.tobytes() == whole.tobytes()
    by_one = Launched(words, tmp_path / "read", 1, 8, *options, steps=steps).ended().losses()
    assert len(by_one) == len(whole)
    np.testing.assert_allclose(by_one, whole, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes_", [1, 2])
def test_stopped_by_ctrl_c_and_gone_on_with(words, tmp_path, processes_):
    whole = Launched(words, tmp_path / "whole", processes_, 2, steps=300).ended().losses()
    stopped = Launched(words, tmp_path / "stopped", processes_, 2, steps=300)
    stopped.wait_for(lambda: list(stopped.output.glob("*/metrics.jsonl")) and metrics_in(stopped.folder()))
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.end() == 130, stopped.error
    assert stopped.saved(), stopped.error
    assert 0 < stopped.saved()[-1] < 300
    assert Launched(words, tmp_path / "stopped", processes_, 2, steps=300).ended().losses().tobytes() == whole.tobytes()


@pytest.mark.slow
def test_a_sweep_of_two_processes_trains_one_run_after_another(words, tmp_path):
    """As on a slice of many machines: both train every cell, one writes what is written once."""
    tiny = f"--data.text {words} --data.documents line --data.tokenizer bytes --data.length 16 -o {tmp_path / 'out'}"
    sweep = f"sweep {tiny} --budgets 4e8 --sizes 2 --tokens-per-param 2 8".split()
    code = f"import sys\nfrom experiments.launch.processes import Local\nsys.exit(Local(processes=2).launch({sweep!r}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "no law" in done.stdout, done.stderr  # of two runs
    assert done.stdout.count("runs.csv") == 1
    assert len(list((tmp_path / "out").glob("cells/*/result.json"))) == 2
    assert len((tmp_path / "out" / "runs.csv").read_text().splitlines()) == 3
