"""Initial values against JAX's own generator, SciPy's normal distribution, and other meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from models import normal
from parallel.mesh import device_mesh

KEY = jax.random.key(7)


def words(key):
    return tuple(jax.random.key_data(key))


def test_threefry_is_that_of_jax():
    counters = np.random.default_rng(0).integers(0, 2**32, (2, 50), dtype=np.uint32)
    ours = normal.threefry(words(KEY), tuple(jnp.asarray(counters)))
    theirs = threefry_2x32(jax.random.key_data(KEY), jnp.asarray(counters.ravel()))
    np.testing.assert_array_equal(np.concatenate(ours), theirs)


def test_keys_are_those_of_jax():
    np.testing.assert_array_equal(np.stack(normal.split(KEY, 5)), jax.random.key_data(jax.random.split(KEY, 5)))


def test_one_row_is_a_draw_of_jax():
    ours = normal.normal(words(KEY), (1, 300), PartitionSpec(None, None))
    np.testing.assert_array_equal(ours[0], jax.random.normal(KEY, (300,)))


def test_distribution():
    draws = np.asarray(normal.normal(words(KEY), (40, 25, 50), PartitionSpec())).astype(np.float64)
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
    assert len(np.unique(draws)) > 0.99 * draws.size  # no two places share a counter
    for axis in range(3):  # neighbours along every axis are independent
        first, second = np.delete(draws, -1, axis), np.delete(draws, 0, axis)
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_a_layer_does_not_know_how_many_there_are():
    few, many = (normal.normal(words(KEY), (layers, 6, 8), PartitionSpec()) for layers in (2, 5))
    np.testing.assert_array_equal(few, many[:2])


@pytest.mark.parametrize("spec", [PartitionSpec("fsdp", "tensor"), PartitionSpec(None, ("fsdp", "tensor"))])
def test_the_same_on_every_mesh(spec):
    whole = normal.normal(words(KEY), (8, 16), PartitionSpec())
    with jax.set_mesh(device_mesh("fsdp=4,tensor=2")) as _:
        spread = jax.jit(lambda key: normal.normal(words(key), (8, 16), spec))(KEY)
        assert spread.sharding == NamedSharding(jax.sharding.get_mesh(), spec)
    np.testing.assert_array_equal(whole, spread)


def test_too_many_entries_for_a_counter():
    with pytest.raises(ValueError, match=r"2\^32"):
        normal.normal(words(KEY), (2, 2**17, 2**16), PartitionSpec())
