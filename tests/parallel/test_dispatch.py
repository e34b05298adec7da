"""Places sent to groups on other devices: what comes back, and that whoever finds no seat is left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from parallel.dispatch import Sent, everywhere, in_buffers, in_order, seats
from parallel.mesh import device_mesh

GROUPS, CAPACITY = 4, 3
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(8, 6, 5)).astype(np.float32)
PICKED = np.stack([RNG.permuted(np.arange(GROUPS)[None].repeat(6, axis=0), axis=1)[:, :2] for _ in range(8)])
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


def order(rows, picked, weights, taken, factors):
    def compute(rows, lengths):
        ends = jnp.cumsum(lengths)
        group = jnp.sum(jnp.arange(len(rows))[:, None] >= ends[None, :], axis=1)
        return rows * factors.at[group].get(mode="fill", fill_value=jnp.nan)[:, None]  # of no group: nobody's word

    return in_order(sent(rows, picked, weights), compute)


def all_of_them(rows, picked, weights, taken, factors):
    compute = lambda rows, spread: jnp.einsum("bld,ble,e->bld", rows, spread, factors)  # noqa: E731
    return everywhere(sent(rows, picked, weights), compute)


@pytest.mark.parametrize("way", [buffers, order, all_of_them])
def test_what_groups_elsewhere_make_comes_back(way):
    """And so do gradients: that of a place is the sum of its groups' factors."""
    kept = WEIGHTS * (taken() < CAPACITY) if way is buffers else WEIGHTS
    factors = (kept * FACTORS[PICKED]).sum(axis=2)[..., None]
    with jax.set_mesh(mesh := device_mesh("data=2,expert=2", jax.devices()[:4])):
        by_row, spread = PartitionSpec(("data", "expert")), PartitionSpec("expert")
        local = jax.shard_map(way, in_specs=(by_row, by_row, by_row, by_row, spread), out_specs=by_row)
        place = partial(jax.device_put, device=NamedSharding(mesh, by_row))
        arrays = [place(array) for array in (ROWS, PICKED, WEIGHTS, taken())]
        groups = jax.device_put(FACTORS, NamedSharding(mesh, spread))
        total = lambda *arrays: ((y := local(*arrays)).sum(), y)  # noqa: E731
        (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(*arrays, groups)
    np.testing.assert_allclose(found, factors * ROWS, rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, np.broadcast_to(factors, ROWS.shape), rtol=0, atol=1e-5)
