"""Layers in stages: the step of one device for every kind of model, its exchanges, and who holds what."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from axis_cases import assert_same, one_step
from training_cases import losses, train_to_end

from experiments.objectives import Causal, Masked, SpanCorruption, Vocabulary
from experiments.placement import Placement
from models import zoo
from models.execution import Dispatch, Execution, Kernel, Layers, Remat
from models.rules import rules_for
from models.transformer import declare
from parallel.mesh import MeshShape, device_mesh
from parallel.pipeline import Pipeline

SIZES = dict(width=32, heads=2, vocab=64, length=16)
IDS = Vocabulary(size=64, extra=8)
MODELS = {
    "decoder": (lambda depth: zoo.llama(**SIZES, depth=depth), Causal()),
    "encoder": (lambda depth: zoo.bert(**SIZES, depth=depth), Masked(vocabulary=IDS)),
    "encoder-decoder": (lambda depth: zoo.t5(**SIZES, depth=depth), SpanCorruption(vocabulary=IDS)),
    "turns": (lambda depth: zoo.gemma2(**SIZES, depth=2 * depth, window=5), Causal()),
    "experts": (lambda depth: zoo.mixtral(**SIZES, depth=depth, experts=4, balance=0.0, capacity=1.0), Causal()),
}
ROWS = np.random.default_rng(0).integers(1, 50, (8, 17))
LOOPED = dict(layers=Layers.SCAN, remat=Remat.FULL)


@functools.cache
def alone(name, depth):
    build, objective = MODELS[name]
    return one_step(build(depth), objective, ROWS)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "depth", "shape", "pipeline", "more"),
    [
        slow("decoder", 2, "pipeline=2", Pipeline(microbatches=4), {}),
        slow("decoder", 4, "pipeline=2", Pipeline(microbatches=4, rounds=2), LOOPED),
        slow("decoder", 4, "pipeline=4,data=2", Pipeline(microbatches=2), {}),
        slow("decoder", 8, "pipeline=4", Pipeline(microbatches=4, rounds=2), LOOPED),
        slow("decoder", 2, "pipeline=2,fsdp=2,tensor=2", Pipeline(microbatches=4), {}),
        slow("decoder", 4, "pipeline=2,fsdp=2,tensor=2", Pipeline(microbatches=2, rounds=2), LOOPED),
        slow("encoder", 2, "pipeline=2,fsdp=2", Pipeline(microbatches=2), {}),
        slow("encoder-decoder", 2, "pipeline=2,fsdp=2", Pipeline(microbatches=4), {}),
        slow("turns", 2, "pipeline=2", Pipeline(microbatches=4), {}),
        slow("decoder", 2, "pipeline=2,sequence=2", Pipeline(microbatches=2), {}),
        slow("experts", 2, "pipeline=2,expert=2", Pipeline(microbatches=2), {}),
        slow("decoder", 2, "pipeline=2,data=2", Pipeline(microbatches=2), {"kernel": Kernel.REFERENCE}),
    ],
)
def test_stages_take_the_step_of_one_device(name, depth, shape, pipeline, more):
    build, objective = MODELS[name]
    step = one_step(build(depth), objective, ROWS, shape, pipeline=pipeline, **more)
    assert_same(step, alone(name, depth))
    sizes = MeshShape.parse(shape)
    # Each stage hands on at every tick, and so does the backward pass; with several rounds layers are dealt before.
    ticks = pipeline.rounds * pipeline.microbatches + sizes.pipeline - 1
    stacks = len(build(depth).stacks)
    handed = step.collectives["collective-permute", ("pipeline",)]
    assert handed == 2 * ticks * stacks if pipeline.rounds == 1 else handed > 2 * ticks
    assert step.share == pytest.approx(1 / (sizes.devices / sizes.data), rel=0.02)
    # A stage is told nothing of what others compute: parameters outside of layers are gathered, once, and by XLA on
    # CPUs what `top_k` chooses from.
    chosen = name == "experts"
    assert step.collectives.get(("all-gather", ("pipeline",)), 0) <= 2 + 4 * chosen


@pytest.mark.slow
def test_a_run_in_stages_is_that_of_one_device(run, prepared, tmp_path):
    """Training, evaluation and result; dropout is other, and there."""
    architecture = replace(run.architecture, decoder=replace(run.architecture.decoder, repeats=2))
    short = replace(run, architecture=architecture, steps=16)
    one = train_to_end(short, tmp_path / "one", prepared)
    found = train_to_end(short, tmp_path / "stages", prepared, devices=4, mesh="pipeline=2,data=2", microbatches=2)
    np.testing.assert_allclose(losses(found), losses(one), rtol=1e-5)
    dry = loss_of(zoo.llama(**SIZES, depth=2), key=0)
    wet = [loss_of(zoo.llama(**SIZES, depth=2, dropout=0.3), key=key) for key in (0, 0, 1)]
    assert wet[0] == wet[1]
    assert len({dry, wet[0], wet[2]}) == 3
    with pytest.raises(ValueError, match="the mesh has none"):
        Placement(microbatches=2).execution(short, device_mesh("data=1", jax.devices()[:1]))


def loss_of(architecture, *, key):
    return one_step(architecture, Causal(), ROWS, "pipeline=2", seed=key, pipeline=Pipeline(microbatches=2)).loss


def test_what_has_no_stages_is_refused():
    mesh = device_mesh("pipeline=2", jax.devices()[:2])
    sizes = SIZES | dict(depth=4)
    for architecture, said in (
        (zoo.albert(**sizes), "the layers of albert share their parameters"),
        (zoo.llama(**(sizes | dict(depth=3))), "3 layers of llama cannot be shared equally by 2 stages"),
        (zoo.gemma2(**(sizes | dict(depth=6)), window=5), "6 layers of gemma2 in turns of 2 .* multiple of 4"),
    ):
        with pytest.raises(ValueError, match=said):
            rules_for(architecture, mesh)
    ragged = Execution(dispatch=Dispatch.RAGGED, pipeline=Pipeline(microbatches=2))
    with pytest.raises(ValueError, match="ragged products cannot be computed in stages"):
        declare(MODELS["experts"][0](2), execution=ragged)
