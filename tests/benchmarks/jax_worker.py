"""Our side of `train_step`: trains, and on each line of standard input measures for that many seconds."""

import json
import sys
import time
from functools import partial

import jax
import numpy as np

from experiments.data.prepare import DataConfig
from experiments.optimizer import Schedule
from experiments.runs import Run
from experiments.train import Placement, Recipe, advance, initial_state, steps_per_call
from models import zoo
from models.execution import Precision, Remat
from parallel.hardware import chip, measured_matmul_flops
from parallel.mesh import device_mesh
from parallel.sharding import born_sharded


def main() -> None:
    """Answers until standard input ends."""
    model = json.loads(sys.argv[1])
    sizes = {name: model[name] for name in ("width", "depth", "heads", "length", "vocab")}
    run = Run(
        architecture=zoo.gpt2(**sizes), data=DataConfig(length=model["length"]), rows="random", schedule=Schedule(),
        batch=model["batch"], steps=10**6, precision=Precision(model["precision"]),
    )  # fmt: skip
    placement, mesh = Placement(remat=Remat(model["remat"])), device_mesh()
    with jax.set_mesh(mesh):
        execution = placement.execution(run, mesh)
        key, count = jax.random.key(0), steps_per_call(run, placement)
        state = born_sharded(partial(initial_state, run=run, execution=execution), mesh, execution.rules, key)
        recipe = Recipe(run.objective, run.optimizer)
        shape = (count, 1, run.batch, model["length"] + 1)
        rows = np.random.default_rng(0).integers(2, model["vocab"], shape, dtype=np.int32)  # 1 begins a document
        rows = jax.device_put(rows, jax.NamedSharding(mesh, execution.rules.spec(None, None, "batch", None)))
        rates, count = jax.numpy.full(count, 1e-3), jax.numpy.int32(count)

        def call(state):
            state, metrics = advance(state, rows, rates, count, key, recipe=recipe)
            metrics["loss"].block_until_ready()
            return state

        state = call(state)
        sheet = chip(mesh.devices.flat[0])
        facts = {
            "flops_per_token": run.cost.flops_per_token,
            "params": run.cost.params,
            "steps_per_call": int(count),
            "kind": mesh.devices.flat[0].device_kind,
            "chip_peak": sheet and sheet.bf16_flops * mesh.size,
        }
        print(json.dumps(facts), flush=True)
        state = call(state)
        for line in sys.stdin:
            peak = None if sheet else measured_matmul_flops(seconds=0.5)
            calls, began = 0, time.perf_counter()
            while time.perf_counter() - began < float(line):
                state, calls = call(state), calls + 1
            speed = calls * int(count) * run.batch_tokens / (time.perf_counter() - began)
            print(json.dumps({"tokens_per_second": speed, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
