"""One train step of small models of every kind on meshes, and what their devices send each other."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from experiments.data.packed import DataConfig
from experiments.objectives import Causal, Masked, Prefixed, SequenceToSequence, Vocabulary
from experiments.optimizer import AdamW, Schedule
from experiments.placement import Placement
from experiments.runs import Run
from experiments.train import Recipe, initial_state, one_step
from models import zoo
from models.positions import Positions
from parallel.mesh import device_mesh
from parallel.program import read
from parallel.sharding import born_sharded


def mesh_of(text):
    count = math.prod(int(part.partition("=")[2]) for part in text.split(","))
    return device_mesh(text, jax.devices()[:count])


IDS = Vocabulary(size=64, extra=8)
SIZES = dict(width=16, depth=1, heads=4, vocab=64, length=32)
CASES = {
    "decoder": (zoo.llama(**SIZES, kv_heads=2), Causal(bos=1)),
    "alibi": (zoo.decoder(**SIZES, positions=Positions.ALIBI), Causal(bos=1)),
    "learned": (zoo.gpt2(**SIZES), Causal(bos=1)),
    "prefix": (zoo.decoder(**SIZES), Prefixed(bos=1)),
    "encoder": (zoo.bert(**SIZES), Masked(vocabulary=IDS)),
    "both": (zoo.transformer(**SIZES, dropout=0.0), SequenceToSequence(vocabulary=IDS, inputs=16)),
    "relative": (zoo.t5(**SIZES), SequenceToSequence(vocabulary=IDS, inputs=16)),
    "dropout": (zoo.gpt2(**SIZES, dropout=0.1), Causal(bos=1)),
}


class Bench:
    """One optimizer step of a run on a mesh: what was measured, parameters and moments after it, what devices sent.

    Adam has a large epsilon: where there is no gradient (key biases), it would otherwise divide noise by noise.
    """

    def __init__(self, name, mesh, *, batch=4, length=None, **placement):
        architecture, objective = CASES[name]
        length = length or (31 if isinstance(objective, SequenceToSequence) else 32)  # of both sides, 16
        run = Run(
            architecture=architecture, objective=objective, data=DataConfig(length=length), rows="",
            schedule=Schedule(), batch=batch, steps=1, optimizer=AdamW(eps=1e-3),
        )  # fmt: skip
        rows = np.random.default_rng(0).integers(4, 56, (1, batch, length + 1)).astype(np.int32)
        rows[:, :, [0, 11]], rows[0, 1, -3:] = 1, 0
        with jax.set_mesh(placed := mesh_of(mesh)):
            execution = Placement(**placement).execution(run, placed)
            self.context, rules, key = execution.context, execution.rules, jax.random.key(0)
            state = born_sharded(partial(initial_state, run=run, execution=execution), placed, rules, key)
            rows = jax.device_put(rows, NamedSharding(placed, rules.spec(None, "batch", None)))
            recipe = Recipe(objective, run.optimizer)

            def step(state, rows):
                return one_step(state, rows, jnp.float32(3e-3), key, recipe)

            compiled = jax.jit(step).lower(state, rows).compile()
            stepped, measured = compiled(state, rows)
        self.measured = {name: float(value) for name, value in measured.items()}
        self.model, self.moments = (
            [np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (stepped.model, stepped.optimizer)
        )
        self.program = read(compiled.as_text(), placed)


@cache
def one_device(name):
    return Bench(name, "data=1")


def assert_step_of_one_device(name, found):
    """Loss and norm to 1e-6; gradients, of which the optimizer's moments are the first so far, to 1e-5 of the largest
    entry; parameters to 0.1 % of what a step may move them."""
    expected = one_device(name)
    assert found.measured == pytest.approx(expected.measured, rel=1e-6)
    largest = max(np.abs(leaf).max() for leaf in expected.moments)
    for ours, theirs in zip(found.moments, expected.moments, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)
    for ours, theirs in zip(found.model, expected.model, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)
