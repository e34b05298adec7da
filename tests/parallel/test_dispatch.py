"""Places sent to groups on other devices: what comes back, and that whoever finds no seat is left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from parallel.dispatch import Sent, everywhere, exchange, exchanged, in_buffers, in_order, seats
from parallel.mesh import device_mesh

GROUPS, CAPACITY = 4, 3
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(8, 6, 5)).astype(np.float32)
PICKED = np.stack([RNG.permuted(np.arange(GROUPS)[None].repeat(6, axis=0), axis=1)[:, :2] for _ in range(8)])
TOGETHER = np.broadcast_to([1, 0], PICKED.shape)  # of four groups on two devices, both of the first
WEIGHTS = RNG.uniform(size=PICKED.shape).astype(np.float32)
FACTORS = np.array([1.0, -2.0, 5.0, 0.5], np.float32)  # what each group does to a place


def taken():
    """For each choice, how many in the row chose the same before it."""
    found = np.zeros(PICKED.shape, int)
    for row, choices in enumerate(PICKED):
        flat = choices.reshape(-1)
        found[row] = np.reshape([np.sum(flat[:index] == group) for index, group in enumerate(flat)], choices.shape)
    return found


def test_seats_are_taken_in_order():
    np.testing.assert_array_equal(seats(jnp.asarray(PICKED), GROUPS), taken())


def sent(rows, picked, weights):
    return Sent(rows=rows, picked=picked, weights=weights, groups=GROUPS, axes=("expert",))


def buffers(rows, picked, weights, taken, factors):
    compute = lambda rows: rows * factors[None, :, None, None]  # noqa: E731
    return in_buffers(sent(rows, picked, weights), compute, taken=taken, capacity=CAPACITY)


def in_runs(way, block, rows, picked, weights, taken, factors):
    def compute(factors, rows, weights, lengths):
        ends = jnp.cumsum(lengths)
        group = jnp.sum(jnp.arange(len(rows))[:, None] >= ends[None, :], axis=1)
        made = rows * factors.at[group].get(mode="fill", fill_value=jnp.nan)[:, None]  # of no group: nobody's word
        return made * weights[:, None]

    return way(sent(rows, picked, weights), compute, factors, block=block)


def all_of_them(rows, picked, weights, taken, factors):
    compute = lambda rows, spread: jnp.einsum("bld,ble,e->bld", rows, spread, factors)  # noqa: E731
    return everywhere(sent(rows, picked, weights), compute)


gathered, apart = partial(in_runs, in_order, None), partial(in_runs, exchanged, None)
gathered_in_blocks, apart_in_blocks = partial(in_runs, in_order, 7), partial(in_runs, exchanged, 7)


def graded(way, mesh, picked):
    """A function to what comes back and the gradients of its sum by rows, weights and factors; and its arguments."""
    by_row, spread = PartitionSpec(("data", "expert")), PartitionSpec("expert")
    specs = (by_row, by_row, by_row, by_row, spread)
    local = jax.shard_map(way, in_specs=specs, out_specs=by_row, check_vma=False)
    total = lambda *arrays: ((y := local(*arrays)).sum(), y)  # noqa: E731
    arrays = [jax.device_put(each, NamedSharding(mesh, by_row)) for each in (ROWS, picked, WEIGHTS, taken())]
    groups = jax.device_put(FACTORS, NamedSharding(mesh, spread))
    return jax.jit(jax.value_and_grad(total, argnums=(0, 2, 4), has_aux=True)), (*arrays, groups)


@pytest.mark.parametrize(
    ("way", "picked"),
    [
        pytest.param(buffers, PICKED, id="buffers"),
        pytest.param(all_of_them, PICKED, id="everywhere"),
        pytest.param(gathered, PICKED, id="in order"),
        pytest.param(gathered_in_blocks, TOGETHER, id="in order, in blocks, all to one device"),
        pytest.param(apart, PICKED, id="exchanged"),
        pytest.param(apart_in_blocks, PICKED, id="exchanged, in blocks"),
        pytest.param(apart_in_blocks, TOGETHER, id="exchanged, in blocks, all to one device"),
    ],
)
def test_what_groups_elsewhere_make_comes_back(way, picked):
    """And so do gradients: that of a place is the sum of its groups' factors."""
    kept = (taken() < CAPACITY) if way is buffers else np.ones(PICKED.shape)
    factors = (kept * WEIGHTS * FACTORS[picked]).sum(axis=2)[..., None]
    with jax.set_mesh(mesh := device_mesh("data=2,expert=2", jax.devices()[:4])):
        function, arrays = graded(way, mesh, picked)
        (_, found), (by_rows, by_weights, by_factors) = function(*arrays)
    np.testing.assert_allclose(found, factors * ROWS, rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_rows, np.broadcast_to(factors, ROWS.shape), rtol=0, atol=1e-5)
    expected = kept * FACTORS[picked] * ROWS.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(by_weights, expected, rtol=0, atol=1e-5)
    each = kept * WEIGHTS * ROWS.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(by_factors, [each[picked == group].sum() for group in range(GROUPS)], rtol=0, atol=1e-4)


def test_a_ragged_exchange_is_one_for_each_way_and_direction():
    """Where XLA has it: there and back, and so do gradients; on a CPU there is none."""
    with jax.set_mesh(mesh := device_mesh("data=2,expert=2", jax.devices()[:4])):
        function, arrays = graded(apart, mesh, PICKED)
        traced = function.trace(*arrays)
        written = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cuda", "cpu")}
    counted = {name: text.count("@ragged_all_to_all") for name, text in written.items()}
    assert counted == {"tpu": 4, "cuda": 4, "cpu": 0}


RUNS = np.array([[2, 0, 1, 3], [0, 4, 0, 0], [1, 1, 1, 1], [5, 0, 0, 0]])  # from each of four devices to each


def exchange_of(rows, sizes, room):
    with jax.set_mesh(mesh := device_mesh("expert=4", jax.devices()[:4])):
        spec = PartitionSpec("expert")
        move = partial(exchange, axes=("expert",), room=room)
        local = jax.jit(jax.shard_map(move, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False))
        placed = jax.device_put(rows.reshape(-1, 2), NamedSharding(mesh, spec))
        return np.asarray(local(placed, jnp.asarray(sizes, jnp.int32))).reshape(4, room, 2)


def test_runs_arrive_in_order_and_go_back():
    rows = np.arange(4 * 7 * 2, dtype=np.float32).reshape(4, 7, 2)
    arrived, wrong = exchange_of(rows, RUNS, 9), exchange_of(rows, RUNS[:, [3, 1, 2, 0]], 9)
    for device, count in enumerate(RUNS.sum(axis=0)):
        starts = np.cumsum(RUNS, axis=1) - RUNS
        runs = [rows[source, starts[source, device] :][: RUNS[source, device]] for source in range(4)]
        np.testing.assert_array_equal(arrived[device, :count], np.concatenate(runs))
    assert (wrong[2, :2] != arrived[2, :2]).any()  # to the third device goes as much, from a place that has moved
    back = exchange_of(arrived, RUNS.T, 7)
    for device, count in enumerate(RUNS.sum(axis=1)):
        np.testing.assert_array_equal(back[device, :count], rows[device, :count])
