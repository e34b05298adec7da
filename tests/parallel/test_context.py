"""Rows whose length is split over devices: attention, then whole train steps, equal to those of one device."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard
from mesh_steps import IDS, SIZES, Bench, assert_step_of_one_device, mesh_of

from experiments.data.packed import DataConfig
from experiments.objectives import Causal, SequenceToSequence
from experiments.optimizer import Schedule
from experiments.placement import Placement
from experiments.runs import Run
from models import zoo
from models.attention import Attention, Sight, Visibility, attend
from models.execution import Execution, Kernel
from models.kernels import KEYS, QUERIES
from models.positions import Positions
from models.rules import Stream, rules_for
from models.transformer import declare
from parallel.context import Context, exchanged
from parallel.program import read
from parallel.sharding import Rules, shardings

slow = pytest.mark.slow
BATCH, LENGTH, HEADS, DIM = 2, 32, 4, 8
SPLIT = Rules(length=("sequence",))


def attention(text, config, context, *, memory=LENGTH, packed=True):
    """Output and gradients of an attention on a mesh, and the compiled program."""
    split = "sequence" in text
    execution = Execution(rules=SPLIT if split else Rules(), context=context, kernel=Kernel.DENSE)
    rng, kv = np.random.default_rng(0), config.kv_heads
    with jax.set_mesh(mesh := mesh_of(text)):
        spec = execution.rules.spec

        def draw(*shape, axes):
            return reshard(jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32), spec(*axes))

        arrays = (
            draw(kv, HEADS // kv, LENGTH, DIM, axes=QUERIES),
            draw(kv, memory, DIM, axes=KEYS),
            draw(kv, memory, DIM, axes=KEYS),
        )
        weights = draw(kv, HEADS // kv, LENGTH, DIM, axes=QUERIES)
        ends = rng.integers(3, LENGTH - 3, (BATCH, 1))
        numbers = [reshard(jnp.asarray(np.arange(n)[None] > ends), spec("batch")) for n in (LENGTH, memory)]
        queries, keys = (number.astype(jnp.int32) for number in numbers) if packed else (None, None)
        own = replace(Sight.of(config, queries), keys=keys)
        sight = own if memory == LENGTH else Sight.whole(queries, keys)

        def total(q, k, v):
            out = attend(q, k, v, config, execution, sight=sight)
            return jnp.sum(out * weights), out

        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)).lower(*arrays).compile()
        (_, out), gradients = step(*arrays)
    return [np.asarray(each) for each in (out, *gradients)], read(step.as_text(), mesh)


def config_of(**settings):
    return Attention(**dict(heads=HEADS, head_dim=DIM, kv_heads=2) | settings)


BOTH_WAYS = Visibility.BIDIRECTIONAL
ATTENTIONS = {
    "causal": (config_of(positions=Positions.ALIBI, score_cap=3.0), {}),
    "both ways": (config_of(kv_heads=4, visibility=BOTH_WAYS), {}),
    "unpacked": (config_of(), dict(packed=False)),
    "window": (config_of(window=6), {}),
    "wide window": (config_of(window=20), {}),
    "window, both ways": (config_of(window=6, visibility=BOTH_WAYS), {}),
    "memory": (config_of(visibility=BOTH_WAYS), dict(memory=16)),
    "one key head": (config_of(kv_heads=1), {}),
}


def same_on_one_device(name, text, context):
    config, asked = ATTENTIONS[name]
    found, _ = attention(text, config, context, **asked)
    expected, _ = attention("data=1", config, context, **asked)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("causal", "sequence=4,tensor=2"),
        *(pytest.param(name, "fsdp=2,sequence=4", marks=slow) for name in ATTENTIONS),
        pytest.param("causal", "sequence=8", marks=slow),
        pytest.param("window", "sequence=8", marks=slow),
        pytest.param("unpacked", "sequence=2", marks=slow),
    ],
)
def test_the_ring_is_attention(name, text):
    same_on_one_device(name, text, Context.RING)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("causal", "fsdp=2,sequence=2,tensor=2", marks=slow),  # key heads by tensor, groups by sequence
        *(pytest.param(name, "fsdp=2,sequence=2", marks=slow) for name in ATTENTIONS),
    ],
)
def test_heads_exchanged_for_length_is_attention(name, text):
    same_on_one_device(name, text, Context.ULYSSES)


def exchanges(text, config, context):
    """How often devices exchange along the sequence, by kind; the sum that the test itself makes of all left out."""
    collectives = attention(text, config, context)[1].collectives
    return {each.kind: each.count for each in collectives if each.axes == ("sequence",) and each.kind != "all-reduce"}


@slow
def test_what_passes_between_devices():
    """Ring: keys and values take n - 1 steps in each pass, of which the first is the same in both; their gradients take
    as many, on the way back. Early and late parts of queries, keys, values and results are swapped there and back, in
    both passes. Ulysses: each of the four is exchanged once in each pass."""
    config, devices = config_of(kv_heads=4), 4
    swaps, steps = 2 * 4 * 2, (2 * (devices - 1) - 1) * 2 + (devices - 1) * 2
    assert exchanges(f"sequence={devices}", config, Context.RING) == {"collective-permute": swaps + steps}
    near = config_of(kv_heads=4, window=6)  # one neighbour, and no balance to keep
    assert exchanges(f"sequence={devices}", near, Context.RING) == {"collective-permute": 2 + 2}
    assert exchanges(f"sequence={devices}", config, Context.ULYSSES) == {"all-to-all": 2 * 4}


def test_who_can_exchange():
    mesh = mesh_of("sequence=2,tensor=2")
    assert exchanged(SPLIT, mesh, kv_heads=4, groups=1).kv_heads == ("tensor", "sequence")
    assert exchanged(SPLIT, mesh, kv_heads=2, groups=2).groups == ("sequence",)
    assert exchanged(SPLIT, mesh, kv_heads=2, groups=3) is None


def placed(architecture, objective, *, length=32, mesh="sequence=4", **placement):
    """The execution of a run on a mesh."""
    run = Run(
        architecture=architecture, objective=objective, data=DataConfig(length=length), rows="", schedule=Schedule(),
        batch=4, steps=1,
    )  # fmt: skip
    return Placement(**placement).execution(run, mesh_of(mesh))


def test_heads_are_exchanged_where_they_divide():
    for heads, context in ((4, Context.ULYSSES), (2, Context.RING)):
        architecture = zoo.llama(**SIZES | dict(heads=heads))
        assert placed(architecture, Causal(bos=1)).context is context
    assert placed(zoo.llama(**SIZES), Causal(bos=1), context=Context.RING).context is Context.RING


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("rows of 30 tokens .* sequence=4; with a row length of 32 they can", dict(length=30)),
        (
            "ring attention is not computed by the kernel 'reference'",
            dict(context=Context.RING, kernel=Kernel.REFERENCE),
        ),
    ],
)
def test_runs_that_cannot_be_split(said, asked):
    with pytest.raises(ValueError, match=said):
        placed(zoo.llama(**SIZES), Causal(bos=1), **asked)


def test_inputs_and_targets_must_both_divide():
    with pytest.raises(ValueError, match=r"rows of 16 and 14 tokens .* with a row length of 31 they can"):
        placed(zoo.t5(**SIZES), SequenceToSequence(vocabulary=IDS, inputs=16), length=29)


def test_models_that_cannot_be_split():
    sizes = dict(width=16, depth=1, heads=4, image=(8, 8, 1), patch=4, classes=3)
    with pytest.raises(ValueError, match="mesh axis sequence=2: rows of vit cannot be split"):
        rules_for(zoo.vit(**sizes), mesh_of("sequence=2"))


@pytest.mark.parametrize(
    ("said", "asked", "context"),
    [
        ("ring attention has no relative bias", dict(bias=True), Context.RING),
        ("ring attention has no prefix", dict(prefix=True), Context.RING),
        (r"4 heads \(2 key/value heads\) cannot be exchanged between the devices of sequence=8", {}, Context.ULYSSES),
    ],
)
def test_attention_says_what_it_cannot_do(said, asked, context):
    shapes = [(BATCH, 2, 2, LENGTH, DIM), (BATCH, 2, LENGTH, DIM), (BATCH, 2, LENGTH, DIM)]
    config, execution = config_of(), Execution(rules=SPLIT, context=context)
    prefix = jnp.ones((BATCH, LENGTH), bool) if "prefix" in asked else None
    bias = jnp.zeros((2, 2, LENGTH, LENGTH)) if "bias" in asked else None
    with jax.set_mesh(mesh_of("sequence=8")), pytest.raises(ValueError, match=said):
        attend(*map(jnp.zeros, shapes), config, execution, sight=Sight.of(config, None, prefix), bias=bias)


@pytest.mark.parametrize(
    ("name", "text", "context"),
    [
        ("decoder", "fsdp=2,sequence=2,tensor=2", None),
        pytest.param("decoder", "sequence=8", None, marks=slow),
        pytest.param("decoder", "fsdp=2,sequence=4", Context.RING, marks=slow),
        pytest.param("decoder", "fsdp=2,sequence=4", None, marks=slow),
        pytest.param("decoder", "sequence=4,tensor=2", Context.RING, marks=slow),
        pytest.param("alibi", "data=2,sequence=4", Context.RING, marks=slow),
        pytest.param("learned", "fsdp=2,sequence=4", Context.RING, marks=slow),
        pytest.param("prefix", "fsdp=2,sequence=4", None, marks=slow),
        *(
            pytest.param(name, text, context, marks=slow)
            for name in ("encoder", "both")
            for text in ("sequence=4", "fsdp=2,sequence=4", "fsdp=2,sequence=2,tensor=2")
            for context in Context
        ),
        pytest.param("relative", "fsdp=2,sequence=4", None, marks=slow),
        pytest.param("dropout", "fsdp=2,sequence=4", None, marks=slow),
    ],
)
def test_a_step_is_that_of_one_device(name, text, context):
    found = Bench(name, text, context=context)
    assert_step_of_one_device(name, found)
    kinds = {each.kind for each in found.program.collectives if "sequence" in each.axes}
    moved = "collective-permute" if found.context is Context.RING else "all-to-all"
    assert {moved, "all-gather"} <= kinds


@slow
@pytest.mark.parametrize("placement", [dict(), dict(stream=Stream.SPLIT)])
def test_logits_in_chunks_of_split_rows(placement):
    found = Bench("decoder", "sequence=2,tensor=2", logits_chunk=8, **placement)
    assert_step_of_one_device("decoder", found)
    with pytest.raises(ValueError, match="logits_chunk 1 cannot be shared equally by the 2 devices"):
        Bench("decoder", "sequence=2", logits_chunk=1)
    with pytest.raises(ValueError, match="logits_chunk 6 does not divide the row length 32"):
        Bench("decoder", "sequence=2", logits_chunk=6)


@pytest.mark.parametrize("family", [zoo.llama, zoo.bert, zoo.transformer])
@pytest.mark.parametrize("text", ["sequence=8", "fsdp=2,sequence=4", "fsdp=2,sequence=2,tensor=2"])
def test_devices_hold_equal_parts_of_the_parameters(family, text):
    """Within 2 %: norms and biases of heads and hidden units are too small to be split further."""
    architecture, mesh = family(width=512, depth=12, heads=8, vocab=512, length=32), mesh_of(text)
    rules = rules_for(architecture, mesh)
    model = declare(architecture, execution=Execution(rules=rules))
    layout = jax.tree.leaves(shardings(model, mesh, rules))
    sizes = [leaf.shape for leaf in jax.tree.leaves(model)]
    held = sum(math.prod(each.shard_shape(shape)) for each, shape in zip(layout, sizes, strict=True))
    assert held == pytest.approx(sum(map(math.prod, sizes)) / 8, rel=0.02)
