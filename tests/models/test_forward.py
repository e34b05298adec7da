"""The whole forward pass against NumPy in float64, one query at a time, written from the papers."""

import math

import jax
import numpy as np
import pytest
from model_cases import ARCHITECTURES, filled

from models.config import NormPlacement
from models.embedding import Scale
from models.feedforward import Activation, Form
from models.head import Tying
from models.layers import NormForm
from models.positions import Positions

BATCH, LENGTH = 2, 20


def value(param):
    return param[...]


def layer_norm(x, module, layer=()):
    scale = value(module.scale)[layer]
    if module.norm.form is NormForm.RMS:
        return x / math.sqrt((x**2).mean() + 1e-6) * scale
    return (x - x.mean()) / math.sqrt(x.var() + 1e-6) * scale + value(module.shift)[layer]


def activate(x, activation):
    erf = np.vectorize(math.erf)
    return {
        Activation.RELU: lambda: np.maximum(x, 0),
        Activation.SILU: lambda: x / (1 + np.exp(-x)),
        Activation.GELU_EXACT: lambda: x * (1 + erf(x / math.sqrt(2))) / 2,
        Activation.GELU: lambda: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    }[activation]()


def turn(x, place, base):
    """Rotary: entries i and i + half are one complex number, turned by place * base^(-i / half)."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * place * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def slope(head, heads):
    """ALiBi, from the authors' rule, by cases that the paper prints: 2^-1, 2^-2 ... for 8 heads."""
    power = 2 ** math.floor(math.log2(heads))
    if head < power:
        return 2 ** (-8 * (head + 1) / power)
    return 2 ** (-8 * (2 * (head - power) + 1) / (2 * power))


def attention(rows, module, layer, segments):
    """Self-attention of one sequence, `rows` its normalised inputs."""
    config = module.config
    bias = lambda name: 0.0 if getattr(module, name) is None else value(getattr(module, name))[layer]  # noqa: E731
    outputs = np.zeros_like(rows)
    for head in range(config.heads):
        kv, group = divmod(head, config.heads // config.kv_heads)
        pick = lambda entry, *at: entry[at] if np.ndim(entry) else entry  # noqa: E731
        q = rows @ value(module.query)[layer][:, kv, group] + pick(bias("query_bias"), kv, group)
        k = rows @ value(module.key)[layer][:, kv] + pick(bias("key_bias"), kv)
        v = rows @ value(module.value)[layer][:, kv] + pick(bias("value_bias"), kv)
        if config.qk_norm:
            q = np.stack([layer_norm(x, module.query_norm, layer) for x in q])
            k = np.stack([layer_norm(x, module.key_norm, layer) for x in k])
        if config.positions is Positions.ROTARY:
            q = np.stack([turn(x, place, config.rotary.base) for place, x in enumerate(q)])
            k = np.stack([turn(x, place, config.rotary.base) for place, x in enumerate(k)])
        for query in range(len(rows)):
            seen = [
                key
                for key in range(query + 1)
                if segments[key] == segments[query] and (config.window is None or query - key < config.window)
            ]
            scores = np.array([q[query] @ k[key] / math.sqrt(config.head_dim) for key in seen])
            if config.score_cap:
                scores = config.score_cap * np.tanh(scores / config.score_cap)
            if config.positions is Positions.ALIBI:
                scores = scores - slope(head, config.heads) * (query - np.array(seen))
            weights = np.exp(scores - scores.max())
            outputs[query] += (weights / weights.sum()) @ v[seen] @ value(module.out)[layer][kv, group]
    return outputs + bias("out_bias")


def feedforward(x, module, layer):
    bias = lambda name: 0.0 if getattr(module, name) is None else value(getattr(module, name))[layer]  # noqa: E731
    up = x @ value(module.up)[layer] + bias("up_bias")
    if module.config.form is Form.GATED:
        up = up * activate(x @ value(module.gate)[layer] + bias("gate_bias"), module.config.activation)
    else:
        up = activate(up, module.config.activation)
    return up @ value(module.down)[layer] + bias("down_bias")


def embedded(model, tokens, places):
    config, width = model.config, model.config.width
    factor = math.sqrt(width) if config.embedding.scale is Scale.ROOT else 1.0
    x = value(model.table)[tokens] * factor
    if config.embedding.positions is Positions.LEARNED:
        x = x + value(model.prelude.positions)[places] * factor
    if config.embedding.positions is Positions.SINUSOIDAL:
        rates = [10_000 ** (-2 * i / width) for i in range(width // 2)]
        x = x + [[math.sin(p * r) for r in rates] + [math.cos(p * r) for r in rates] for p in places]
    return x


def branch(x, block, norm, layer, function, module):
    """One residual branch, its norm before or after."""
    normal = lambda y: np.stack([layer_norm(row, norm, layer) for row in y])  # noqa: E731
    if block.config.placement is NormPlacement.PRE:
        return x + function(normal(x), module, layer)
    return normal(x + function(x, module, layer))


def logits(model, tokens, segments, places):
    """Logits of one sequence."""
    config = model.config
    x = embedded(model, tokens, places)
    for layer in range(config.decoder.repeats):
        for block in model.stack.pattern:
            x = branch(x, block, block.mixer_norm, layer, lambda y, *at: attention(y, *at, segments), block.mixer)
            x = branch(x, block, block.feedforward_norm, layer, feedforward, block.feedforward)
    if model.norm is not None:
        x = np.stack([layer_norm(row, model.norm, ...) for row in x])
    out = x @ value(model.table if config.head.tying is Tying.TIED else model.head.matrix).T
    cap = config.head.logit_cap
    return out if cap is None else cap * np.tanh(out / cap)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_numpy(name):
    model = filled(ARCHITECTURES[name])
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.config.vocab, (BATCH, LENGTH))
    segments = np.stack([np.arange(LENGTH) >= 7, np.zeros(LENGTH)]).astype(np.int32)
    places = np.stack([np.r_[np.arange(7), np.arange(LENGTH - 7)], np.arange(LENGTH)])
    run = jax.jit(lambda model, *rows: model.logits(model(rows[0], segments=rows[1], positions=rows[2])))
    ours = np.asarray(run(model, tokens, segments, places))
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model)
    theirs = np.stack([logits(weights, *row) for row in zip(tokens, segments, places, strict=True)])
    assert theirs.std() > 0.3  # not a comparison of nothing with nothing
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5 * np.abs(theirs).max())
