"""What must not change the result: how it is computed, what follows, what else is in the row."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard
from model_cases import ARCHITECTURES, SIZES, executed, filled

from models import zoo
from models.attention import KEYS, QUERIES, Attention, Sight, attend
from models.execution import Execution, Kernel, Layers, Precision, Remat
from models.layers import LAYER_NORM, RMS_NORM, Normalize, dropout, initialize
from models.positions import Positions
from parallel.sharding import Rules

BATCH, LENGTH = 2, 64


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SIZES["vocab"], (BATCH, LENGTH))
    return tokens, np.cumsum(tokens == 3, axis=1)


@jax.jit
def hidden(model, tokens, segments, positions):
    return model(tokens, segments=segments, positions=positions)


@jax.jit
def loss_and_gradient(model, tokens, segments):
    def loss(model):
        scores = jax.nn.log_softmax(model.logits(model(tokens, segments=segments, key=jax.random.key(5))))
        return -(scores[:, :-1] * jax.nn.one_hot(tokens[:, 1:], scores.shape[-1])).sum(axis=-1).mean()

    return jax.value_and_grad(loss)(model)


def close(ours, theirs, *, relative):
    """Leaves equal to a share of the largest entry of each; some are nought but rounding, as of the bias of keys."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * max(np.abs(other).max(), 1e-2))


@pytest.mark.parametrize(
    ("architecture", "ways"),
    [
        (ARCHITECTURES["gpt2"], [dict(layers=Layers.SCAN, remat=remat) for remat in Remat]),
        pytest.param(
            zoo.decoder(**SIZES, dropout=0.2), [dict(layers=Layers.SCAN, remat=Remat.FULL)], marks=pytest.mark.slow
        ),
        pytest.param(
            ARCHITECTURES["pattern"], [dict(layers=Layers.SCAN), dict(remat=Remat.FULL)], marks=pytest.mark.slow
        ),
    ],
    ids=["gpt2", "dropout", "pattern"],
)
def test_scan_and_remat_change_nothing(rows, architecture, ways):
    """Values and gradients of every way to run the layers, with the same dropout."""
    model, short = filled(architecture), [row[:, :16] for row in rows]
    expected = loss_and_gradient(model, *short)
    for way in ways:
        close(loss_and_gradient(executed(model, **way), *short), expected, relative=1e-5)


@pytest.mark.parametrize(
    ("shape", "packed"),
    [(dict(kv_heads=4), False), (dict(kv_heads=2, window=20), True), (dict(kv_heads=1, window=3), True)],
    ids=["multi-head", "grouped", "multi-query"],
)
def test_kernels_agree(rows, shape, packed):
    """Blocks, dense and `jax.nn.dot_product_attention`: outputs and gradients of queries, keys and values."""
    config = Attention(heads=4, head_dim=8, **shape)
    kv, rng, spec = config.kv_heads, np.random.default_rng(1), Rules().spec

    def draw(*shape, axes):
        return reshard(jnp.asarray(rng.normal(size=(BATCH, *shape, LENGTH, 8)), jnp.float32), spec(*axes))

    arrays = (draw(kv, 4 // kv, axes=QUERIES), draw(kv, axes=KEYS), draw(kv, axes=KEYS))
    weights = draw(kv, 4 // kv, axes=QUERIES)
    segments = reshard(jnp.asarray(rows[1]), spec("batch", "length")) if packed else None

    def run(kernel):
        execution = Execution(kernel=kernel)

        def outputs(q, k, v):
            out = attend(q, k, v, config, execution, sight=Sight.of(config, segments))
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(outputs, argnums=(0, 1, 2), has_aux=True))(*arrays)

    expected = run(Kernel.REFERENCE)
    for kernel in (Kernel.BLOCKS, Kernel.DENSE):
        close(run(kernel), expected, relative=1e-5)


def test_a_kernel_says_what_it_cannot_do():
    model = filled(ARCHITECTURES["alibi"], kernel=Kernel.REFERENCE)
    with pytest.raises(ValueError, match="'reference' has no ALiBi"):
        model(jnp.zeros((1, 8), jnp.int32))


def places_of(*lengths):
    """Segments and places of a row that holds documents of these lengths."""
    segments = np.repeat(np.arange(len(lengths)), lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    return (np.broadcast_to(row, (BATCH, LENGTH)).astype(np.int32) for row in (segments, places))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_token_sees_a_later_one_or_another_document(rows, name):
    """Two documents in a row, with segments and places of their own, are what each is alone."""
    model, tokens, cut = filled(ARCHITECTURES[name]), rows[0], 24
    whole = np.asarray(hidden(model, tokens, *places_of(LENGTH)))

    changed = tokens.copy()
    changed[:, 37] = (changed[:, 37] + 1) % SIZES["vocab"]
    after = np.asarray(hidden(model, changed, *places_of(LENGTH)))
    np.testing.assert_array_equal(whole[:, :37], after[:, :37])  # bitwise: nothing before a changed token changes
    assert (whole[:, 37] != after[:, 37]).any()
    assert (whole[:, 38] != after[:, 38]).any()

    packed = np.asarray(hidden(model, tokens, *places_of(cut, LENGTH - cut)))
    second = np.asarray(hidden(model, np.roll(tokens, -cut, axis=1), *places_of(LENGTH)))[:, : LENGTH - cut]
    alone = np.concatenate([whole[:, :cut], second], axis=1)
    close(packed, alone, relative=1e-5)

    one, own = np.zeros_like(tokens), list(places_of(cut, LENGTH - cut))
    leaking = np.asarray(hidden(model, tokens, one, own[1]))
    assert np.abs(leaking - alone)[:, cut:].max() > 1e-2  # without segments, the second document sees the first
    if name in ("gpt2", "sinusoidal"):
        misplaced = np.asarray(hidden(model, tokens, own[0], list(places_of(LENGTH))[1]))
        assert np.abs(misplaced - alone)[:, cut:].max() > 1e-2


def test_bfloat16_is_near_float32(rows):
    """The loss within 1 % and gradients within 3 % of their norm; parameters and gradients stay float32."""
    model = filled(zoo.llama(**SIZES, kv_heads=2))
    loss, gradient = loss_and_gradient(model, *rows)
    low_loss, low = loss_and_gradient(executed(model, precision=Precision.BFLOAT16), *rows)
    assert low_loss != loss  # it was computed otherwise
    assert abs(low_loss / loss - 1) < 0.01
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low))
    pairs = list(zip(jax.tree.leaves(low), jax.tree.leaves(gradient), strict=True))
    error, norm = (sum(float(np.square(a - s * b).sum()) for a, b in pairs) ** 0.5 for s in (1, 0))
    assert error < 0.03 * norm


def test_dropout_drops_its_share():
    x = jnp.ones((400, 500))
    for rate in (0.1, 0.5, 0.9):
        y = np.asarray(dropout(x, rate, jax.random.key(0)))
        assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - rate))}
        assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)


def test_dropout_of_a_model_depends_on_its_key_alone(rows):
    dry, model = filled(zoo.decoder(**SIZES)), filled(zoo.decoder(**SIZES, dropout=0.3))
    run = jax.jit(lambda model, seed: model(rows[0], key=jax.random.key(seed)))
    whole = list(places_of(LENGTH))
    np.testing.assert_array_equal(run(model, 1), run(model, 1))
    assert np.abs(run(model, 1) - run(model, 2)).max() > 0.1
    np.testing.assert_array_equal(hidden(model, rows[0], *whole), hidden(dry, rows[0], *whole))  # no key, no dropout


def test_bad_architectures_say_why():
    sizes = dict(width=24, depth=1, vocab=32, length=8)
    for message, make in {
        "5 heads": lambda: zoo.decoder(**sizes, heads=5),
        "4 heads cannot share 3": lambda: zoo.decoder(**sizes, heads=4, kv_heads=3),
        "even head_dim": lambda: zoo.decoder(**sizes, heads=8),
        "even width": lambda: zoo.decoder(**(sizes | dict(width=9)), heads=1, positions=Positions.SINUSOIDAL),
        "dropout": lambda: zoo.decoder(**sizes, heads=4, dropout=1.0),
        "heads is 0": lambda: zoo.decoder(**sizes, heads=0),
        "at least one block": lambda: zoo.decoder(**(sizes | dict(depth=0)), heads=4),
        "vocab is 0": lambda: zoo.decoder(**(sizes | dict(vocab=0)), heads=4),
        "belong to the embedding": lambda: Attention(heads=1, head_dim=2, kv_heads=1, positions=Positions.LEARNED),
        "belong to attention": lambda: replace(zoo.decoder(**sizes, heads=4).embedding, positions=Positions.ALIBI),
    }.items():
        with pytest.raises(ValueError, match=message):
            make()


def test_norms_are_in_float32():
    """Squares of bfloat16 entries would lose all but three digits of the mean."""
    execution = Execution(precision=Precision.BFLOAT16)
    x = jax.random.normal(jax.random.key(0), (4, 512)).astype(jnp.bfloat16) + 3
    for norm in (LAYER_NORM, RMS_NORM):
        module = Normalize(norm, (512,), ("embed",), execution=execution)
        module = initialize(module, jax.random.key(0), execution.rules)
        exact = module(x.astype(jnp.float32))
        np.testing.assert_array_equal(module(x), exact.astype(jnp.bfloat16))
