"""Slurm: the scripts, their submission, and a real cluster on this machine that loses a node and preempts a job."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slurm_cluster import SlurmCluster, missing
from training_cases import metrics_in, text

from experiments.cli import main
from experiments.launch.slurm import Slurm
from experiments.runs import Cell
from experiments.sweep import share_of

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--data.text", "a b.txt")
SWEEP = ("sweep", "--budgets", "1e9")


def directives(text):
    return dict(re.match(r"#SBATCH --([\w-]+)=?(.*)", line).groups() for line in text.splitlines() if "#SBATCH" in line)


def test_a_run_is_one_job_on_all_its_nodes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (script,) = Slurm(nodes=4, gpus_per_node=8, cpus_per_task=6, time="1:00:00", options=("--mem=64G",)).scripts(TRAIN)
    assert directives(script.text).items() >= {
        "nodes": "4", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "6", "time": "1:00:00",
        "mem": "64G", "requeue": "", "open-mode": "append", "signal": "B:USR1@120", "chdir": str(tmp_path),
    }.items()  # fmt: skip
    assert not {"array", "partition", "account"} & directives(script.text).keys()
    (line,) = [line for line in script.text.splitlines() if line.startswith("srun")]
    assert line.startswith(f"srun --kill-on-bad-exit=1 --cpus-per-task=6 {sys.executable} -m experiments.cli train ")
    assert "'a b.txt' </dev/null &" in line


def test_a_sweep_is_an_array_between_two_jobs():
    rows, cells, report = Slurm(nodes=4, array=20, name="law").scripts(SWEEP)
    assert [script.name for script in (rows, cells, report)] == ["law-rows", "law-cells", "law-report"]
    assert (cells.after, report.after) == (("afterok", "law-rows"), ("afterany", "law-cells"))
    assert directives(cells.text)["array"] == "0-19%4"
    assert {directives(script.text)["nodes"] for script in (rows, cells, report)} == {"1"}
    assert '--budgets 1e9 --share "$SLURM_ARRAY_TASK_ID/20" </dev/null' in cells.text
    assert "--budgets 1e9 --dry-run </dev/null" in rows.text
    assert "--budgets 1e9 </dev/null" in report.text
    assert directives(Slurm(nodes=3).scripts(SWEEP)[1].text)["array"] == "0-2"


@pytest.mark.parametrize("command", [TRAIN, SWEEP])
def test_scripts_are_valid_shell(command):
    for script in Slurm().scripts(command):
        subprocess.run(["bash", "-n"], input=script.text, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--array", "3", "--", "train"], "an array shares the cells of a sweep, and this is train"),
        (["--nodes", "0", "--", "train"], "nodes is 0"),
        (["--nodes", "2", "--", "train", "-o", "s3://b/x"], "several processes keep checkpoints in gs://bucket"),
        (["--", *SWEEP, "--share", "0/3"], "--share 0/3 is what the tasks of an array get"),
        (["--options", "--mem=4G", "--", "train"], "written with '=': --options=--mem=4G"),
        (["--time", "5parsecs", "--", "train"], "'5parsecs' is no time"),
        (["--", "train", "--dry-run"], "--dry-run after -- would ask for machines that train nothing"),
        (["--restarts", "-1", "--", "train"], "restarts is -1"),
        (["--options=mem", "--", "train"], "'mem' is no option of sbatch"),
        (["--", "train"], "sbatch is not on this machine"),
    ],
)
def test_mistakes(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "slurm", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_dry_run_shows_what_is_submitted_and_submits_nothing(capsys, monkeypatch, tmp_path):
    """By a stand-in for sbatch that keeps what it is given."""
    program = tmp_path / "sbatch"
    program.write_text(
        f'#!/bin/bash\necho "$*" >> {tmp_path}/said\ncat >> {tmp_path}/scripts\necho "$(wc -l < {tmp_path}/said);c"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "slurm", "--array", "2", "--dry-run", "--", *SWEEP]) == 0
    shown = re.split(r"^# ----- .*\n", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert not (tmp_path / "said").exists()
    assert main(["launch", "slurm", "--array", "2", "--", *SWEEP]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:3]] == [
        ["scaling-rows", "job", "1"],
        ["scaling-cells", "job", "2"],
        ["scaling-report", "job", "3"],
    ]
    assert (tmp_path / "scripts").read_text() == "".join(text.removesuffix("\n") for text in shown)
    assert (tmp_path / "said").read_text().splitlines() == [
        "--parsable",
        "--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes",
        "--parsable --dependency=afterany:2 --kill-on-invalid-dep=yes",
    ]


def test_shares_are_all_cells_once(run):
    cells = [Cell(run=replace(run, steps=10 + step), sweep="s", budget=1.0) for step in range(7)]
    shares = [share_of([*cells, cells[0]], f"{number}/3") for number in range(3)]
    assert sorted(cell.run.steps for share in shares for cell in share) == list(range(10, 17))
    assert [len(share) for share in shares] == [3, 2, 2]
    assert share_of(cells, "8/9") == []
    for wrong in ("3/3", "0", "a/b", "-1/3", "1/"):
        with pytest.raises(ValueError, match="a share is written as 0/20"):
            share_of(cells, wrong)


# ---------------------------------------------------------------------------------------------------------------------
# A real cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        cluster.environment |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        yield cluster


@pytest.fixture
def words(tmp_path):
    (tmp_path / "text.txt").write_text(text())
    return tmp_path / "text.txt"


def scaling(cluster, folder, *arguments):
    return cluster.run(sys.executable, "-m", "experiments.cli", *map(str, arguments), cwd=folder)


def submitted(printed):
    return dict(re.findall(r"^(\S+)\s+job (\d+)$", printed, re.MULTILINE))


def logs(folder):
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted((folder / "slurm").glob("*")))


def trained(folder):
    """Result and metrics of every finished run of a sweep."""
    runs = [path.parent for path in folder.glob("cells/*/result.json")]
    return {run.name: (json.loads((run / "result.json").read_bytes()), metrics_in(run)) for run in runs}


@pytest.mark.slow
def test_a_sweep_survives_a_dead_node_and_a_preemption(cluster, words, tmp_path):
    """Twenty runs on four nodes end in the bits of twenty runs on none."""
    sweep = f"sweep --data.text {words} --data.documents line --data.tokenizer bytes --data.length 16 --workers 1"
    sweep = f"{sweep} --budgets 8e9 1.2e10 --sizes 5 --seeds 0 1 --tokens-per-param 2 60".split()
    printed = scaling(
        cluster, tmp_path, "launch", "slurm", "--nodes", 4, "--array", 20, "--partition", "low", "--notice", 30,
        "--", *sweep, "-o", "there",
    )  # fmt: skip
    assert submitted(printed).keys() == {"scaling-rows", "scaling-cells", "scaling-report"}

    def running(node):
        return [line.strip() for line in cluster.queue("-w", node, "-t", "R", "-o", "%A")]

    begun = lambda: len(list(tmp_path.glob("there/cells/*/metrics.jsonl")))  # noqa: E731
    dying, wanted = cluster.nodes[1:3]
    cluster.wait(lambda: begun() >= 2 and running(dying) and running(wanted), 300)
    lost, preempted = running(dying)[0], running(wanted)[0]
    cluster.kill_node(dying)
    cluster.run("sbatch", "-p", "high", "-w", wanted, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    cluster.wait(lambda: cluster.restarts(preempted), 120)
    cluster.wait(lambda: cluster.restarts(lost), 120)
    cluster.wait(lambda: not cluster.queue(), 900)
    assert "stopped with notice; to be queued again" in logs(tmp_path), logs(tmp_path)

    there = trained(tmp_path / "there")
    assert len(there) == 20, logs(tmp_path)
    assert (tmp_path / "there" / "runs.csv").read_text().count("\n") == 21
    assert len(list((tmp_path / "there" / "shares").iterdir())) == 20
    scaling(cluster, tmp_path, *sweep, "--share", "0/1", "-o", "here")
    assert trained(tmp_path / "here") == there


# In place of the command: what a process ends with is told by a word for each, of which the last is for other starts.
ENDS = """
import os, signal, sys, time
words = sys.argv[sys.argv.index("ends") + 1 :]
word = words[-1] if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else words[int(os.environ["SLURM_PROCID"])]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
if word == "waits":
    time.sleep(60)
sys.exit(int(word))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "restarts", "code"),
    [(("203", "waits", "0"), 1, "0:0"), (("203", "203", "203"), 2, "203:0"), (("1", "waits", "0"), 0, "130:0")],
    ids=["lost", "lost again and again", "failed"],
)
def test_only_what_a_restart_can_mend_is_queued_again(cluster, tmp_path, words, restarts, code):
    """Whatever Slurm does to the other process of the run, which waits for the one that ended."""
    (tmp_path / "ends.py").write_text(ENDS)
    nodes = f"--nodelist={cluster.nodes[0]},{cluster.nodes[1]}"
    (script,) = Slurm(nodes=2, restarts=2, logs=tmp_path / "slurm", options=(nodes,)).scripts(("ends", *words))
    (tmp_path / "slurm").mkdir()
    text = script.text.replace("-m experiments.cli", str(tmp_path / "ends.py")).replace("sleep 300", "sleep 1")
    (tmp_path / "job").write_text(text)
    job = cluster.run("sbatch", "--parsable", str(tmp_path / "job"), cwd=tmp_path).strip()
    cluster.wait(lambda: not cluster.queue(), 200)
    assert cluster.restarts(job) == restarts, logs(tmp_path)
    assert f"ExitCode={code}" in cluster.run("scontrol", "show", "job", job)


@pytest.mark.slow
def test_a_run_on_two_nodes_is_queued_again_and_goes_on(cluster, words, tmp_path):
    """With notice, as Slurm gives it; to the bits of two processes here that nothing interrupted."""
    tiny = f"train --data.text {words} --data.documents line --data.tokenizer bytes --data.length 16 --batch 8"
    train = f"{tiny} --model.width 16 --model.depth 1 --model.heads 2 --steps 400".split()
    first, second = cluster.nodes[0], cluster.nodes[3]
    printed = scaling(
        cluster, tmp_path, "launch", "slurm", "--nodes", 2, f"--options=--nodelist={first},{second}", "--",
        *train, "-o", "there",
    )  # fmt: skip
    job = submitted(printed)["scaling"]
    cluster.wait(lambda: [path for path in tmp_path.glob("there/*/metrics.jsonl") if path.read_text()], 200)
    cluster.run("scancel", "--batch", "--signal", signal.SIGUSR1.name.removeprefix("SIG"), job)
    cluster.wait(lambda: cluster.restarts(job), 100)
    cluster.wait(lambda: not cluster.queue(), 300)
    said = logs(tmp_path)
    assert re.search(rf"process 1 of 2 \(Slurm\) on .*: 1 of 2 cpu devices, coordinator {first}:\d+", said), said
    assert "stopped with notice; to be queued again" in said
    assert "Traceback" not in said
    assert "ExitCode=0:0" in cluster.run("scontrol", "show", "job", job)
    local = ["launch", "local", "--processes", "2", "--devices", "1", "--", *train, "-o", "here"]
    scaling(cluster, tmp_path, *local)
    (there,), (here,) = tmp_path.glob("there/*/run.json"), tmp_path.glob("here/*/run.json")
    losses = [[line["loss"] for line in metrics_in(path.parent)] for path in (there, here)]
    assert np.asarray(losses[0]).tobytes() == np.asarray(losses[1]).tobytes()
    assert (there.parent / "result.json").read_bytes() == (here.parent / "result.json").read_bytes()
