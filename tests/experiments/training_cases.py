"""One tiny run and what became of it: trained on some devices, stopped, gone on with, compared bit for bit.

Shapes are few and shared, so that a test session compiles few programs.
"""

import itertools
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from experiments import train as trainer
from experiments.data.packed import DataConfig
from experiments.data.prepare import prepare
from experiments.data.prepared import Prepared
from experiments.data.sources import Documents, TextFiles
from experiments.data.tokenizer import Kind, TokenizerConfig
from experiments.objectives import Causal
from experiments.optimizer import Schedule
from experiments.runs import Run, RunFolder
from models import zoo

LENGTH, BATCH, STEPS = 16, 8, 300
ARCHITECTURE = zoo.decoder(width=16, depth=1, heads=2, vocab=260, length=LENGTH)
DROPOUT = zoo.decoder(width=16, depth=1, heads=2, vocab=260, length=LENGTH, dropout=0.2)
WORDS = "the a one red blue cat dog sees likes eats small big and or then here fish bird"


def text(lines: int = 900) -> str:
    """Documents of one line, from 2 to 60 letters, the same on every machine."""
    rng = random.Random(0)
    return "".join(" ".join(rng.choices(WORDS.split(), k=rng.choice([1, 2, 3, 8, 12]))) + "\n" for _ in range(lines))


def data_config(path: Path) -> DataConfig:
    """The text, a document a line, as bytes."""
    source = TextFiles(paths=(str(path),), split_into=Documents.LINE)
    return DataConfig(source=source, tokenizer=TokenizerConfig(kind=Kind.BYTES), length=LENGTH, held_out=0.1)


def rows_in(folder: Path) -> tuple[DataConfig, Prepared]:
    """The text prepared in a folder."""
    folder.mkdir(exist_ok=True)
    path = folder / "text.txt"
    path.write_text(text())
    config = data_config(path)
    return config, prepare(config, folder / "prepared")


def tiny_run(config: DataConfig, prepared: Prepared, **changes) -> Run:
    """300 steps of a model of 7,280 parameters on 8 rows of 16 tokens."""
    run = Run(
        architecture=ARCHITECTURE,
        data=config,
        rows=prepared.fingerprint,
        schedule=Schedule(peak=3e-3),
        batch=BATCH,
        steps=STEPS,
        objective=Causal(bos=prepared.tokenizer.bos),
    )
    return replace(run, **changes)


@dataclass(frozen=True)
class Ended:
    """Everything by which two trainings can be compared."""

    result: dict
    stored: dict
    metrics: list[dict]
    parameters: dict[str, np.ndarray]


def train_to_end(
    run: Run, folder: Path, prepared: Prepared, *, url: str = "", devices: int = 1, stop=lambda: False, **placement
):
    """Trains in this process on the first so many devices."""
    final = {}

    def evaluate(model, *args, **kwargs):
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            final[jax.tree_util.keystr(path)] = np.asarray(leaf)
        return real(model, *args, **kwargs)

    real = trainer.evaluate
    with mock.patch.object(trainer, "evaluate", evaluate):
        result = trainer.train(
            run,
            RunFolder(folder, url),
            prepared,
            placement=trainer.Placement(**placement),
            devices=jax.devices()[:devices],
            stop=stop,
        )
    return Ended(result, json.loads((folder / "result.json").read_bytes()), metrics_in(folder), final)


def train_until(run: Run, folder: Path, prepared: Prepared, *, calls: int, **settings) -> None:
    """Trains until it was asked `calls` times whether to stop."""
    asked = itertools.count(1)
    try:
        train_to_end(run, folder, prepared, stop=lambda: next(asked) >= calls, **settings)
    except trainer.Stopped:
        return
    raise AssertionError(f"the run ended before it was asked {calls} times whether to stop")


def metrics_in(folder: Path) -> list[dict]:
    """The lines of metrics, less the speed, which no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def differences(one: Ended, other: Ended) -> list[str]:
    """What is not the same in two trainings, to the last bit."""
    found = [name for name in ("result", "stored") if getattr(one, name) != getattr(other, name)]
    if one.metrics != other.metrics:
        pairs = itertools.zip_longest(one.metrics, other.metrics, fillvalue={})
        found.append(next(f"metrics from step {a.get('step')} on" for a, b in pairs if a != b))
    if one.parameters.keys() != other.parameters.keys():
        return [*found, "names of parameters"]
    return found + [
        f"parameter {name}"
        for name, value in one.parameters.items()
        if value.tobytes() != other.parameters[name].tobytes()
    ]


def losses(ended: Ended) -> np.ndarray:
    """Training losses and the final one."""
    return np.asarray([line["loss"] for line in ended.metrics] + [ended.result["loss"]])


def start_processes(jobs: Sequence[dict], devices: int) -> list[subprocess.Popen]:
    """`training_process.py` for each job, with so many forced devices; several are the processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    assert f"device_count={devices}" in flags
    program, environment = Path(__file__).with_name("training_process.py"), os.environ | {"XLA_FLAGS": flags}
    cluster = {"coordinator": f"127.0.0.1:{port}", "processes": len(jobs)}
    several = [job | {"cluster": cluster | {"process": process}} for process, job in enumerate(jobs)]
    return [
        subprocess.Popen([sys.executable, program, json.dumps(job)], env=environment, stderr=subprocess.PIPE, text=True)
        for job in (several if len(jobs) > 1 else jobs)
    ]


def outcomes_of(started: Sequence[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit status and standard error of each process, once all have ended."""
    try:
        words = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, said) for process, said in zip(started, words, strict=True)]
