"""JobSets on Kubernetes: what xpk is asked, and the manifest that its own dry run writes."""

import shlex
import shutil

import pytest

from experiments.cli import main
from experiments.launch.gke import Gke
from parallel.ending import AGAIN, FAILED, STOPPED, worth_restarting

TRAIN = ("train", "--data.text", "/mnt/a b.txt")
SETTINGS = {"cluster": "c", "project": "p", "zone": "us-east5-a", "accelerator": "v5litepod-16", "image": "image:1"}
FLAGS = [f"--{name}={value}" for name, value in SETTINGS.items()]

# Stands in for xpk: writes its arguments, a line each, where a manifest is asked for.
XPK = """#!/bin/bash
for each in "$@"; do
  [[ $each == --output-manifest-file=* ]] && file=${each#*=}
  [[ $each == --zone=nowhere ]] && echo "no such zone" >&2 && exit 3
done
printf '%s\\n' "$@" > "${file:-submitted}"
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    (tmp_path / "xpk").write_text(XPK)
    (tmp_path / "xpk").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_is_passed_on_whole():
    arguments = Gke(**SETTINGS | {"slices": 2, "options": ("--priority=high",)}).arguments(TRAIN)
    assert arguments[:3] == ["xpk", "workload", "create"]
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments[3:])
    assert given["num-slices"] == "2"
    assert given["priority"] == "high"
    assert shlex.split(given["command"]) == ["exec", "scaling", *TRAIN]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "My_Run"}, "'My_Run' is no name for a JobSet"),
        ({"slices": 0}, "one slice at least"),
        ({"grace": -5}, "a grace of -5 seconds"),
        ({"options": ("priority",)}, "'priority' is no option of xpk"),
    ],
)
def test_mistakes(changes, said):
    with pytest.raises(ValueError, match=said):
        Gke(**SETTINGS | changes)


def test_dry_run_submits_nothing_and_submitting_is_the_same_command(stand_in, capsys):
    assert main(["launch", "gke", *FLAGS, "--dry-run", "--", *TRAIN]) == 0
    told = capsys.readouterr()
    assert told.err == "'-o runs' is on disks that go with the machines; -o gs://bucket/folder stays\n"
    first, _, *shown = told.out.rstrip().splitlines()
    assert not (stand_in / "submitted").exists()
    assert main(["launch", "gke", *FLAGS, "--", *TRAIN]) == 0
    assert "submitted JobSet scaling" in capsys.readouterr().out
    submitted = (stand_in / "submitted").read_text().splitlines()
    assert shlex.split(first.removeprefix("# ")) == ["xpk", *submitted]
    assert shown[: len(submitted)] == submitted
    assert shown[len(submitted)] == "--dry-run"


def test_what_xpk_refuses_is_told_in_a_line(stand_in, capsys):
    assert main(["launch", "gke", *FLAGS, "--zone=nowhere", "--", *TRAIN, "-o", "gs://bucket/runs"]) == 1
    assert capsys.readouterr().err == "scaling launch: xpk ended with status 3: no such zone\n"
    (stand_in / "xpk").unlink()
    assert main(["launch", "gke", *FLAGS, "--dry-run", "--", *TRAIN]) == 1
    assert "xpk is not on this machine" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("xpk"), reason="xpk is not installed (uv tool install xpk)")
def test_the_manifest_that_xpk_writes():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load(Gke(**SETTINGS | {"slices": 2, "name": "law", "restarts": 7}).manifest(TRAIN))
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "law")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    slice_ = job["template"]["spec"]
    assert slice_["completions"] == slice_["parallelism"] == 4  # machines of 4 chips
    # What starts the JobSet again is what a restart can mend (`parallel.ending`).
    (rule,) = slice_["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert codes["operator"] == "NotIn"
    assert {AGAIN, STOPPED, *(status for status in range(256) if worth_restarting(status))} <= set(codes["values"])
    assert FAILED not in codes["values"]
    pod = slice_["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["image"] == "image:1"
    assert "(exec scaling train --data.text '/mnt/a b.txt') &" in container["command"][-1]
