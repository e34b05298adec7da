"""Trains the run that its argument holds as JSON, slowly; started as a process of its own by the tests of training."""

import json
import sys
import time
from pathlib import Path

import jax

from experiments.configuration import from_json
from experiments.data.prepared import load
from experiments.placement import Placement
from experiments.runs import Run, RunFolder
from experiments.train import train
from parallel.distributed import Cluster
from parallel.distributed import start as join


def main(job):
    pause, cluster = 0.02, job.get("cluster")
    if cluster:
        pause = 0
        join(Cluster(**cluster))
    train(
        from_json(Run, job["run"]),
        RunFolder(Path(job["folder"]), job.get("url", "")),
        load(job["prepared"]),
        placement=Placement(**job["settings"]),
        devices=None if cluster else jax.devices()[:1],
        report=lambda event: time.sleep(300 if event["step"] == job.get("hangs_at") else pause),
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
