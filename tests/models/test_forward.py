"""The whole forward pass against NumPy in float64, one query at a time, written from the papers."""

import math

import jax
import numpy as np
import pytest
from model_cases import ARCHITECTURES, DECODERS, TELLING, filled

from models.attention import NormSpan
from models.config import NormPlacement, Order
from models.embedding import Scale
from models.experts import Experts
from models.feedforward import Activation, Form
from models.head import Tying
from models.layers import NormForm
from models.positions import Positions

BATCH, LENGTH = 2, 20


def value(param):
    return param[...]


def layer_norm(x, module, layer=()):
    """Of one vector; of all heads of one place, where the scale is for all."""
    norm, gain, shift = module.norm, 1.0, 0.0
    if norm.scales:
        gain = norm.offset + value(module.scale)[layer].reshape(x.shape)
        shift = value(module.shift)[layer].reshape(x.shape) if module.shift is not None else 0.0
    centred = x if norm.form is NormForm.RMS else x - x.mean()
    return centred / math.sqrt((centred**2).mean() + norm.epsilon) * gain + shift


def activate(x, activation):
    erf = np.vectorize(math.erf)
    return {
        Activation.RELU: lambda: np.maximum(x, 0),
        Activation.SILU: lambda: x / (1 + np.exp(-x)),
        Activation.GELU_EXACT: lambda: x * (1 + erf(x / math.sqrt(2))) / 2,
        Activation.GELU: lambda: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    }[activation]()


def turn(x, place, rotary):
    """Rotary: entries i and i + half are one complex number, turned by place * base^(-i / half); the rest stays."""
    dims = rotary.dims or len(x)
    half = dims // 2
    z = (x[:half] + 1j * x[half:dims]) * np.exp(1j * place * rotary.base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag, x[dims:]])


def slope(head, heads):
    """ALiBi, from the authors' rule, by cases that the paper prints: 2^-1, 2^-2 ... for 8 heads."""
    power = 2 ** math.floor(math.log2(heads))
    if head < power:
        return 2 ** (-8 * (head + 1) / power)
    return 2 ** (-8 * (2 * (head - power) + 1) / (2 * power))


def attention(rows, module, layer, segments):
    """Self-attention of one sequence, `rows` its normalised inputs."""
    config = module.config
    asked, keys, values = (project(rows, module, part, layer) for part in ("query", "key", "value"))
    if config.qk_norm:
        asked, keys = (
            np.stack([normed(x, norm, layer, config.qk_norm_span) for x in whole])
            for whole, norm in ((asked, module.query_norm), (keys, module.key_norm))
        )
    outputs = np.zeros_like(rows)
    for head in range(config.heads):
        kv, group = divmod(head, config.heads // config.kv_heads)
        q, k, v = asked[:, kv, group], keys[:, kv], values[:, kv]
        if config.positions is Positions.ROTARY:
            q = np.stack([turn(x, place, config.rotary) for place, x in enumerate(q)])
            k = np.stack([turn(x, place, config.rotary) for place, x in enumerate(k)])
        for query in range(len(rows)):
            seen = [
                key
                for key in range(query + 1)
                if segments[key] == segments[query] and (config.window is None or query - key < config.window)
            ]
            factor = 1 / math.sqrt(config.head_dim) if config.scale is None else config.scale
            scores = np.array([q[query] @ k[key] * factor for key in seen])
            if config.score_cap:
                scores = config.score_cap * np.tanh(scores / config.score_cap)
            if config.positions is Positions.ALIBI:
                scores = scores - slope(head, config.heads) * (query - np.array(seen))
            weights = np.exp(scores - scores.max())
            outputs[query] += (weights / weights.sum()) @ v[seen] @ value(module.out)[layer][kv, group]
    return outputs + (0.0 if module.out_bias is None else value(module.out_bias)[layer])


def project(rows, module, part, layer):
    """Queries, keys or values of all heads at each place."""
    made = np.tensordot(rows, value(getattr(module, part))[layer], 1)
    bias = getattr(module, f"{part}_bias")
    return made if bias is None else made + value(bias)[layer][..., 0, :]


def normed(x, norm, layer, span):
    if span is NormSpan.HEADS:
        return layer_norm(x, norm, layer)
    return np.stack([layer_norm(head, norm, layer) for head in x.reshape(-1, x.shape[-1])]).reshape(x.shape)


def experts(x, module, layer):
    """The two or so most probable experts of each token, one token at a time."""
    config, outputs = module.config, []
    for token in x:
        scores = token @ value(module.router)[layer]
        best = np.argsort(-scores)[: config.chosen]
        shares = np.exp(scores[best]) / np.exp(scores[best]).sum()
        up, down = value(module.up)[layer], value(module.down)[layer]
        hidden = [
            activate(token @ value(module.gate)[layer][one], config.mlp.activation) * (token @ up[one]) for one in best
        ]
        outputs.append(sum(share * (h @ down[one]) for share, h, one in zip(shares, hidden, best, strict=True)))
    return np.stack(outputs)


def feedforward(x, module, layer):
    if isinstance(module.config, Experts):
        return experts(x, module, layer)
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
    if config.embedding.norm:
        x = np.stack([layer_norm(row, model.prelude.norm, ...) for row in x])
    return x


def branch(x, block, name, layer, function):
    """What one residual branch adds."""
    normal = lambda y, norm: np.stack([layer_norm(row, norm, layer) for row in y])  # noqa: E731
    norm, placement = getattr(block, f"{name}_norm"), block.config.placement
    before = placement in (NormPlacement.PRE, NormPlacement.SANDWICH)
    y = function(normal(x, norm) if before else x, getattr(block, name), layer)
    if placement is NormPlacement.OUTPUT:
        return normal(y, norm)
    return normal(y, getattr(block, f"{name}_closing_norm")) if placement is NormPlacement.SANDWICH else y


def logits(model, tokens, segments, places):
    """Logits of one sequence."""
    config = model.config
    x = embedded(model, tokens, places)
    for number in range(config.decoder.depth):
        layer, index = divmod(number, config.decoder.period)
        block = model.stack.pattern[index]
        parts = {"mixer": lambda y, *at: attention(y, *at, segments), "feedforward": feedforward}
        added = 0.0
        for name, function in parts.items():
            change = branch(x, block, name, layer, function)
            if block.config.order is Order.PARALLEL:
                added = added + change
                continue
            x = x + change
            if block.config.placement is NormPlacement.POST:
                x = np.stack([layer_norm(row, getattr(block, f"{name}_norm"), layer) for row in x])
        x = x + added
    if model.norm is not None:
        x = np.stack([layer_norm(row, model.norm, ...) for row in x])
    out = x @ value(model.table if config.head.tying is Tying.TIED else model.head.matrix).T
    cap = config.head.logit_cap
    return out if cap is None else cap * np.tanh(out / cap)


@pytest.mark.parametrize(
    "name",
    [*ARCHITECTURES, *(name if name in TELLING else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS)],
)
def test_equals_numpy(name):
    model = filled((ARCHITECTURES | DECODERS)[name])
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
