"""Experts: however tokens reach them it is the same; who finds no seat is known beforehand; nothing looks ahead."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from models import zoo
from models.cost import cost
from models.execution import Dispatch, Execution
from models.experts import Experts, gradient_of_kernels, of_runs
from models.feedforward import MLP, Activation, Form
from models.layers import initialize
from models.observe import observed
from parallel.mesh import device_mesh

MLP_ = MLP(hidden=24, activation=Activation.SILU, form=Form.GATED)
CONFIG = Experts(mlp=MLP_, count=5, chosen=2, balance=0.1)
ROWS = np.random.default_rng(0).normal(size=(3, 12, 16)).astype(np.float32)
CAPACITIES = {"no limit": None, "room for all": 2.5, "room for some": 0.6}


def module(config=CONFIG, dispatch=Dispatch.DENSE, width=16):
    execution = Execution(dispatch=dispatch)
    declared = config.build(width, depth_scale=1.0, std=0.4, execution=execution)
    return jax.jit(lambda key: initialize(declared, key, execution.rules))(jax.random.key(3))


@jax.jit
def outcome(module, x):
    """Outputs and penalty, and the gradient of something of both by parameters and rows."""

    def total(module, x):
        y, penalty = module.with_penalty(x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))) + penalty, (y, penalty)

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(module, x)


def assert_same(one, other):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5 * max(1e-3, np.abs(right).max()))


def plain(module, x, seats):
    """Token by token in float64: outputs, and which of a token's experts had a seat for it."""
    config = module.config
    router, up, gate, down = (np.float64(getattr(module, name)[...]) for name in ("router", "up", "gate", "down"))
    outputs, kept = np.zeros(x.shape), np.zeros((*x.shape[:2], config.chosen), bool)
    for row, tokens in enumerate(np.float64(x)):
        sitting = [0] * config.count
        for place, token in enumerate(tokens):
            scores = token @ router
            best = np.argsort(-scores)[: config.chosen]
            shares = np.exp(scores[best]) / np.exp(scores[best]).sum()
            for choice, (expert, share) in enumerate(zip(best, shares, strict=True)):
                if sitting[expert] < seats:
                    sitting[expert], kept[row, place, choice] = sitting[expert] + 1, True
                    wide = token @ gate[expert]
                    hidden = wide / (1 + np.exp(-wide)) * (token @ up[expert])
                    outputs[row, place] += share * hidden @ down[expert]
    return outputs, kept


@pytest.mark.parametrize(
    "capacity", ["no limit", pytest.param("room for all", marks=pytest.mark.slow), "room for some"]
)
def test_every_dispatch_is_the_same(capacity):
    """Outputs, penalty and gradients; with room for all, the same as without a limit."""
    config = replace(CONFIG, capacity=CAPACITIES[capacity])
    dense = outcome(module(config), ROWS)
    for dispatch in (Dispatch.BUFFERS, Dispatch.RAGGED):
        assert_same(outcome(module(config, dispatch), ROWS), dense)
    unlimited = outcome(module(), ROWS)[0][1][0]
    distance = np.abs(dense[0][1][0] - unlimited).max()
    assert distance > 0.1 if capacity == "room for some" else distance < 1e-5


def test_the_gradient_of_kernels_by_a_fused_one():
    """Runs that end within a tile, and one of none; what follows the last run is not even a number."""
    lengths, rng = np.array([70, 0, 100, 3], np.int32), np.random.default_rng(1)
    runs, gradient = (rng.normal(size=(256, size)).astype(np.float32) for size in (16, 24))
    runs[173:] = gradient[173:] = np.nan
    found = jax.jit(lambda *arrays: gradient_of_kernels(*arrays, interpret=True))(runs, gradient, lengths)
    parts = [slice(end - length, end) for end, length in zip(np.cumsum(lengths), lengths, strict=True)]
    np.testing.assert_allclose(found, [runs[part].T @ gradient[part] for part in parts], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("places", "fused"), [(256, 1), (200, 0)])
def test_where_kernels_have_a_fused_gradient(places, fused):
    """On TPUs, where there are whole tiles of rows."""
    shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((places, 128), (4, 128, 256)))
    gradient = jax.grad(lambda *arrays: of_runs(*arrays).astype(jnp.float32).sum(), argnums=1)
    alone = jax.shard_map(gradient, mesh=device_mesh("data=1", jax.devices()[:1]), in_specs=PartitionSpec(),
                          out_specs=PartitionSpec(), check_vma=False)  # fmt: skip
    traced = jax.jit(alone).trace(*shapes, jax.ShapeDtypeStruct((4,), jnp.int32))
    written = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cpu")}
    assert {name: text.count("@tpu_custom_call") for name, text in written.items()} == {"tpu": fused, "cpu": 0}


@pytest.mark.parametrize(
    ("capacity", "seats"),
    [pytest.param(None, 12, marks=pytest.mark.slow), (0.6, 3), pytest.param(0.2, 1, marks=pytest.mark.slow)],
)
def test_who_finds_no_seat(capacity, seats):
    """Against a loop over tokens: a seat is that of who comes first in the row, and the others add nothing."""
    model = module(replace(CONFIG, capacity=capacity), Dispatch.BUFFERS)
    assert model.config.seats(12) == seats
    expected, kept = plain(model, ROWS, seats)
    names = () if capacity is None else ("kept",)
    y, seen = jax.jit(observed(lambda model, x: model(x), *names))(model, ROWS)
    if capacity is not None:
        np.testing.assert_array_equal(seen["kept"][0], kept)
        assert 0.1 < 1 - kept.mean() < 0.9
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_full_expert_is_no_window_on_the_future():
    """A changed token changes nothing before it, nor in other rows, though experts are full."""
    model = module(replace(CONFIG, capacity=0.6), Dispatch.BUFFERS)
    run, changed = jax.jit(lambda model, x: model(x)), ROWS.copy()
    changed[1, 5] = -3 * changed[1, 5]
    before, after = np.asarray(run(model, ROWS)), np.asarray(run(model, changed))
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1, :5], before[1, :5])
    assert (after[1, 6:] != before[1, 6:]).any()  # who comes later may find a seat taken


@pytest.mark.slow
def test_seats_cost_what_is_counted():
    """XLA's products with as many seats as tokens that are sent are the cost; dense ones are of every expert."""
    config = Experts(mlp=MLP(hidden=512, form=Form.GATED), count=8, chosen=2, capacity=1.0)
    exact, counted = config.cost(256, 256).matmul_flops * 256, {}
    for dispatch in (Dispatch.BUFFERS, Dispatch.DENSE):
        model = jax.eval_shape(lambda dispatch=dispatch: module(config, dispatch, width=256))
        rows = jax.ShapeDtypeStruct((1, 256, 256), jnp.float32)
        compiled = jax.jit(lambda model, x: model(x)).lower(model, rows).compile()
        counted[dispatch] = compiled.cost_analysis()["flops"] / exact
    assert counted[Dispatch.BUFFERS] == pytest.approx(1, rel=0.02)
    assert counted[Dispatch.DENSE] == pytest.approx(4, rel=0.02)


def test_a_capacity_is_part_of_the_architecture():
    sizes = dict(width=16, depth=1, heads=2, vocab=32, length=16)
    limited = zoo.mixtral(**sizes, capacity=1.25)
    assert limited.blocks[0].feedforward.capacity == 1.25
    assert cost(limited) == cost(zoo.mixtral(**sizes))
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="leaves no seats"):
            zoo.mixtral(**sizes, capacity=wrong)
