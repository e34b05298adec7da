"""Our side of `train_step`: trains, and on each line of standard input measures for that many seconds."""

import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.data.packed import DataConfig
from experiments.objectives import Causal, Masked, Sides, SpanCorruption
from experiments.objectives.vocabulary import Vocabulary
from experiments.optimizer import Schedule
from experiments.placement import Placement
from experiments.runs import Run
from experiments.train import Recipe, advance, initial_state, steps_per_call
from models import zoo
from models.execution import Precision, Remat
from parallel.hardware import chip, measured_matmul_flops
from parallel.mesh import device_mesh
from parallel.sharding import born_sharded

RESERVED = 64  # ids for masks and sentinels


def run_of(model: Mapping[str, Any]) -> Run:
    """What is trained: the fields of `train_step.Model`."""
    sizes = {name: model[name] for name in ("width", "depth", "heads", "length", "vocab")}
    architecture = zoo.make(model["family"], **sizes)
    ids = Vocabulary(size=model["vocab"], extra=RESERVED)
    objectives = {
        Sides.DECODER: Causal(),
        Sides.ENCODER: Masked(vocabulary=ids),
        Sides.BOTH: SpanCorruption(vocabulary=ids),
    }
    return Run(
        architecture=architecture, data=DataConfig(length=model["length"]), rows="random", schedule=Schedule(),
        batch=model["batch"], steps=10**6, precision=Precision(model["precision"]),
        objective=objectives[Sides.of(architecture)],
    )  # fmt: skip


def main() -> None:
    """Answers until standard input ends."""
    model = json.loads(sys.argv[1])
    run = run_of(model)
    placement, mesh = Placement(remat=Remat(model["remat"])), device_mesh()
    with jax.set_mesh(mesh):
        execution = placement.execution(run, mesh)
        key, count = jax.random.key(0), steps_per_call(run, placement)
        state = born_sharded(partial(initial_state, run=run, execution=execution), mesh, execution.rules, key)
        recipe = Recipe(run.objective, run.optimizer)
        shape = (count, 1, run.batch, model["length"] + 1)
        rows = np.random.default_rng(0).integers(4, model["vocab"] - RESERVED, shape, dtype=np.int32)  # no special ids
        rows = jax.device_put(rows, jax.NamedSharding(mesh, execution.rules.spec(None, None, "batch", None)))
        rates, count = jax.numpy.full(count, 1e-3), jax.numpy.int32(count)

        def calls(state, seconds):
            """As many calls as that takes; a loss is read one call late, as the train loop does."""
            made, pending, began = 0, None, time.perf_counter()
            while not made or time.perf_counter() - began < seconds:
                state, metrics = advance(state, rows, rates, count, key, recipe=recipe)
                if pending is not None:
                    pending.block_until_ready()
                made, pending = made + 1, metrics["loss"]
            pending.block_until_ready()
            return state, made, time.perf_counter() - began

        state, *_ = calls(state, 0.0)
        sheet = chip(mesh.devices.flat[0])
        facts = {
            "flops_per_token": run.cost.flops(run.batch_tokens) / (run.batch * run.data.length),
            "params": run.cost.params,
            "steps_per_call": int(count),
            "kind": mesh.devices.flat[0].device_kind,
            "chip_peak": sheet and sheet.bf16_flops * mesh.size,
        }
        print(json.dumps(facts), flush=True)
        state, *_ = calls(state, 0.0)
        for line in sys.stdin:
            peak = None if sheet else measured_matmul_flops(seconds=0.5)
            state, made, seconds = calls(state, float(line))
            speed = made * int(count) * run.batch * run.data.length / seconds
            print(json.dumps({"tokens_per_second": speed, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
