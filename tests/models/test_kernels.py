"""The splash kernel, run step by step on the CPU, against attention written out: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard

from models import kernels
from models.attention import Attention, Sight, Visibility, attend
from models.execution import Execution, Kernel
from models.kernels import KEYS, QUERIES
from parallel.mesh import device_mesh

BATCH, LENGTH, DIM = 2, 384, 8  # three blocks of places


@pytest.mark.parametrize(
    ("shape", "packed"),
    [
        (dict(kv_heads=2, window=150), True),
        (dict(kv_heads=4, score_cap=2.0), True),
        (dict(kv_heads=2, visibility=Visibility.BIDIRECTIONAL), False),
    ],
    ids=["grouped, window, packed", "cap, packed", "both ways"],
)
def test_splash_is_attention(shape, packed):
    config, rng = Attention(heads=4, head_dim=DIM, **shape), np.random.default_rng(0)
    kv = config.kv_heads
    with jax.set_mesh(device_mesh("data=2,tensor=2", jax.devices()[:4])):
        spec = Execution().rules.spec

        def draw(*shape, axes):
            return reshard(jnp.asarray(rng.normal(size=(BATCH, *shape, LENGTH, DIM)), jnp.float32), spec(*axes))

        arrays = (draw(kv, 4 // kv, axes=QUERIES), draw(kv, axes=KEYS), draw(kv, axes=KEYS))
        weights = draw(kv, 4 // kv, axes=QUERIES)
        segments = np.arange(LENGTH)[None] >= np.array([[200], [77]])
        segments = reshard(jnp.asarray(segments, jnp.int32), spec("batch", "length")) if packed else None
        sight = Sight.of(config, segments)

        def of(function):
            def total(q, k, v):
                out = function(q, k, v)
                return jnp.sum(out * weights), out

            return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)

        def splash(q, k, v):
            execution = Execution(kernel=Kernel.SPLASH)
            return kernels.attend(q, k, v, config, execution, sight, scale=DIM**-0.5, interpret=True)

        found = of(splash)
        expected = of(lambda q, k, v: attend(q, k, v, config, Execution(kernel=Kernel.DENSE), sight=sight))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_splash_says_what_it_cannot_do():
    config = Attention(heads=2, head_dim=DIM, kv_heads=2, dropout=0.1)
    assert kernels.misfit(Kernel.SPLASH, config, 100) == "dropout, rows of 100 tokens, only multiples of 128"
    assert kernels.misfit(Kernel.SPLASH, Attention(heads=2, head_dim=DIM, kv_heads=2, score_cap=1.0), 128) == ""
    assert kernels.misfit(Kernel.CUDNN, Attention(heads=2, head_dim=DIM, kv_heads=2, score_cap=1.0), 100) == "score cap"
