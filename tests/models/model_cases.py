"""Architectures that between them have every option, and models of given weights under any execution."""

import jax
import jax.numpy as jnp
import numpy as np

from models import zoo
from models.attention import Attention
from models.config import Architecture, Block, NormPlacement, Stack
from models.execution import Execution
from models.feedforward import MLP, Activation, Form
from models.head import Head, Tying
from models.layers import LAYER_NORM, RMS_NORM, initialize
from models.positions import Positions
from models.transformer import Model, declare
from parallel.sharding import is_variable

SIZES = dict(width=24, depth=2, heads=4, vocab=32, length=64)


def _pattern() -> Architecture:
    """Two unlike blocks by turns: a local one that is grouped, and a global one with a gate."""
    local = Block(
        mixer=Attention(heads=4, head_dim=6, kv_heads=2, positions=Positions.ROTARY, window=9),
        feedforward=MLP(hidden=40),
    )
    world = Block(
        mixer=Attention(heads=2, head_dim=8, kv_heads=2, positions=Positions.ALIBI, biases=True),
        feedforward=MLP(hidden=32, form=Form.GATED, biases=True),
        norm=LAYER_NORM,
    )
    stack = Stack(pattern=(local, world), repeats=2)
    return Architecture(family="pattern", vocab=32, length=64, width=24, decoder=stack, head=Head(tying=Tying.UNTIED))


# Between them, every option of every part.
ARCHITECTURES = {
    "gpt2": zoo.gpt2(**SIZES),
    "llama": zoo.llama(**SIZES, kv_heads=2),
    "decoder": zoo.decoder(**SIZES, qk_norm=RMS_NORM, logit_cap=3.0, std=0.1),
    "alibi": zoo.decoder(
        **(SIZES | dict(heads=6)), positions=Positions.ALIBI, placement=NormPlacement.POST, norm=LAYER_NORM,
        activation=Activation.RELU, score_cap=2.0, head_dim=6,
    ),
    "sinusoidal": zoo.decoder(
        **SIZES, positions=Positions.SINUSOIDAL, placement=NormPlacement.POST, kv_heads=1, biases=True, form=Form.GATED,
        activation=Activation.GELU_EXACT, hidden=40,
    ),
    "none": zoo.decoder(**SIZES, positions=Positions.NONE, qk_norm=LAYER_NORM, window=7, tying=Tying.UNTIED),
    "pattern": _pattern(),
}  # fmt: skip

# The decoders of the zoo that have an option of their own, three blocks deep: turns of two or more are unfinished.
_TINY = dict(width=16, depth=3, heads=4, vocab=32, length=64)
DECODERS = {
    "mistral": zoo.mistral(**_TINY, kv_heads=2, window=5),
    "qwen3": zoo.qwen3(**_TINY, kv_heads=2, head_dim=6),
    "olmo": zoo.olmo(**_TINY),
    "olmo2": zoo.olmo2(**_TINY, kv_heads=2),
    "gpt-neox": zoo.gpt_neox(**(_TINY | dict(heads=2))),
    "gpt3": zoo.gpt3(**_TINY, window=5),
    "gemma2": zoo.gemma2(**_TINY, kv_heads=1, window=5, score_cap=2.0, logit_cap=3.0, score_scale=0.3),
    "gemma3": zoo.gemma3(**(_TINY | dict(depth=5)), window=5, period=3, rotary_base=50.0),
    "bloom": zoo.bloom(**(_TINY | dict(width=24, heads=6))),
    "mixtral": zoo.mixtral(**_TINY, kv_heads=2, experts=5),
}

TELLING = ("olmo2", "gpt-neox", "gpt3", "gemma3", "mixtral", "bloom")  # between them, every option of those


def initializer(architecture: Architecture, **execution):
    """The function from a key to a model with its initial values."""
    run = Execution(**execution)
    return lambda key: initialize(declare(architecture, execution=run), key, run.rules)


def build(architecture: Architecture, seed: int = 0) -> Model:
    """A model with its initial values."""
    return jax.jit(initializer(architecture))(jax.random.key(seed))


def filled(architecture: Architecture, seed: int = 0, **execution) -> Model:
    """A model with random values in every parameter, so that biases and scales cannot be forgotten unnoticed."""
    rng = np.random.default_rng(seed)

    def draw(param):
        std = max(param.get_metadata("std") or 0.0, 0.2)
        return param.replace(jnp.asarray(rng.normal(param.get_metadata("constant"), std, param.shape), jnp.float32))

    return jax.tree.map(draw, declare(architecture, execution=Execution(**execution)), is_leaf=is_variable)


def executed(model: Model, **execution) -> Model:
    """The same weights, computed otherwise."""
    other = declare(model.config, execution=Execution(**execution))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))
