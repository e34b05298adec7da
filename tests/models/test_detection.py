"""A generator and a discriminator with one embedding: what they share, what they cost, sizes, meshes, mistakes."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from model_cases import filled, initializer

from experiments import trained
from experiments.buckets import Place
from experiments.commands import export
from experiments.objectives import Masked, ReplacedTokens, Vocabulary, row_keys
from models import pretrained, zoo
from models.cost import cost
from models.execution import Execution, Layers
from models.ladder import ladder
from models.rules import rules_for
from models.transformer import Encoder, declare
from parallel.mesh import device_mesh
from parallel.sharding import is_variable, shardings

SIZES = dict(width=32, depth=2, heads=4, vocab=40, length=12)
PAIR = zoo.electra_pair(**SIZES, size=24)
TOKENS = np.random.default_rng(0).integers(4, 38, (8, 12))
ASK = ReplacedTokens(masking=Masked(vocabulary=Vocabulary(size=40, extra=2), share=0.4, masked=1.0, random=0.0))


@pytest.mark.parametrize("pair", [PAIR, zoo.electra_pair(**SIZES | {"heads": 1})])
def test_what_is_shared_counts_once(pair):
    leaves = jax.tree.leaves(jax.eval_shape(initializer(pair), jax.random.key(0)), is_leaf=is_variable)
    assert cost(pair).params == sum(leaf.size for leaf in leaves)
    apart = sum(cost(side).params for side in pair.sides)
    size = pair.discriminator.table_size
    assert apart - cost(pair).params == (40 + 12 + 2 + 2) * size  # tokens, places, types, scale and shift of the norm
    flops = sum(side.cost(9).flops_per_token for side in pair.sides)
    assert pair.cost(9).flops_per_token == pytest.approx(flops)
    assert pair.places((9,)) == (9,)


def test_the_generator_reads_by_the_discriminators_tables():
    model = filled(PAIR)
    whole = model.generator
    assert isinstance(whole, Encoder)
    assert whole.config == PAIR.generator
    # Alone, of the same parameters: a generator like any other.
    alone = filled(PAIR.generator, seed=1)
    alone.table, alone.prelude, alone.stack, alone.head = whole.table, whole.prelude, whole.stack, whole.head
    logits = jax.jit(lambda model: model.logits(model(TOKENS)))
    np.testing.assert_array_equal(logits(whole), logits(alone))
    read = jax.jit(lambda model: model.generator.logits(model.generator(TOKENS)))
    before = np.asarray(read(model))
    for path in (("table",), ("prelude", "positions"), ("prelude", "types"), ("prelude", "norm", "shift")):
        *way, last = path
        changed = jax.tree.map(lambda leaf: leaf, model)
        owner = changed.discriminator
        for name in way:
            owner = getattr(owner, name)
        setattr(owner, last, jax.tree.map(lambda leaf: 3 * leaf, getattr(owner, last)))
        assert np.abs(np.asarray(read(changed)) - before).max() > 1e-3, path
    assert model.own.table is None  # asking for it whole has left nothing behind


def test_sizes_of_the_paper():
    """Clark et al. 2020, table 6: hidden sizes and heads of the generators."""
    for sizes, share, width, heads in (
        (dict(width=256, depth=12, heads=4, size=128), 1 / 4, 64, 1),
        (dict(width=768, depth=12, heads=12), 1 / 3, 256, 4),
        (dict(width=1024, depth=24, heads=16), 1 / 4, 256, 4),
    ):
        pair = zoo.electra_pair(**sizes, share=share)
        generator = pair.generator
        assert (generator.width, generator.blocks[0].mixer.heads, generator.depth) == (width, heads, sizes["depth"])
        assert generator.blocks[0].feedforward.hidden == 4 * width
        assert generator.table_size == pair.discriminator.table_size == sizes.get("size", sizes["width"])


def test_a_ladder_of_pairs():
    rungs = ladder("electra-pair", 1e5, 1e8, 5, vocab=512, length=128, share=0.5)
    sizes = [cost(rung).params for rung in rungs]
    np.testing.assert_allclose(sizes, np.geomspace(1e5, 1e8, 5), rtol=0.12)
    assert all(rung.generator.width < rung.width for rung in rungs)


@pytest.mark.slow
def test_a_loop_and_a_mesh_change_nothing():
    """Nor what is drawn: losses and gradients are those of one device."""
    keys, values = (
        row_keys(jax.random.key(1), np.arange(8)),
        [np.asarray(leaf) for leaf in jax.tree.leaves(filled(PAIR))],
    )
    rows = np.concatenate([TOKENS, TOKENS[:, :1]], axis=1).astype(np.int32)

    def step(text, **how):
        with jax.set_mesh(mesh := device_mesh(text, jax.devices()[: 1 if text == "data=1" else 8])):
            execution = Execution(rules=rules_for(PAIR, mesh), **how)
            model = declare(PAIR, execution=execution)
            layout = jax.tree.leaves(shardings(model, mesh, execution.rules))
            model = jax.tree.unflatten(jax.tree.structure(model), list(map(jax.device_put, values, layout)))
            spread = jax.device_put(rows, NamedSharding(mesh, execution.rules.spec("batch", None)))
            ask = lambda model, rows: ASK.losses(model, rows, keys, dropout=jax.random.key(2))[0].mean()  # noqa: E731
            return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(ask))(model, spread))]

    expected = step("data=1")
    for text, how in (("data=1", dict(layers=Layers.SCAN, logits_chunk=4)), ("fsdp=8", {}), ("data=2,fsdp=4", {})):
        for ours, theirs in zip(step(text, **how), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(np.abs(theirs).max(), 1e-1), err_msg=text)


@pytest.mark.slow
def test_both_models_are_exported(tmp_path):
    model = filled(PAIR)
    trained.save(tmp_path / "pair", model, source=Place(tmp_path))
    assert export.Command(tmp_path / "pair", tmp_path / "out")() == 0
    for side in ("discriminator", "generator"):
        architecture, found = pretrained.load(tmp_path / "out" / side, execution=Execution())
        assert architecture == getattr(PAIR, side)
        for ours, theirs in zip(jax.tree.leaves(getattr(model, side)), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(ours, theirs)


ONE, OTHER = PAIR.sides


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("are encoders of tokens", lambda: replace(PAIR, generator=zoo.gpt2(**SIZES))),
        ("says one thing of each token", lambda: replace(PAIR, discriminator=zoo.bert(**SIZES))),
        ("says tokens, by a head", lambda: replace(PAIR, generator=ONE)),
        ("share an embedding, and theirs differ", lambda: replace(PAIR, generator=replace(OTHER, vocab=41))),
        ("share an embedding, and theirs differ", lambda: replace(
            PAIR, generator=zoo.electra_generator(**SIZES))),
        ("longer than the architecture's 12", lambda: PAIR.places((13,))),
        ("electra-pair: there is no setting 'shares'; did you mean 'share'",
         lambda: zoo.make("electra-pair", **SIZES, shares=0.5)),
    ],
)  # fmt: skip
def test_mistakes(message, make):
    with pytest.raises(ValueError, match=message):
        make()
