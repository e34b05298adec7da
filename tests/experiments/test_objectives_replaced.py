"""Replaced-token detection: draws and losses of a loop over tokens, on every mesh; what flows back; a run of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from objective_cases import KEY, Encoder, example_of, keys_of, nats, spread, text_rows
from training_cases import LENGTH, differences, losses, train_to_end, train_until

from experiments import trained
from experiments.evaluation import SEED
from experiments.objectives import Masked, ReplacedTokens, Sides, Vocabulary
from experiments.objectives.replaced import DRAWS, draw
from models import zoo
from parallel.mesh import device_mesh

IDS = Vocabulary(size=16, extra=1)  # so few that many are guessed
ASK = ReplacedTokens(masking=Masked(vocabulary=IDS, share=0.4, masked=1.0, random=0.0))
ROWS, KEYS = text_rows(8, 33, ids=IDS), keys_of(8)


class Discriminator(Encoder):
    """Tells one thing of each token by its vector."""

    def classes(self, hidden):
        return hidden.sum(axis=-1, keepdims=True)


class Pair(nnx.Module):
    """A generator and a discriminator that share nothing."""

    def __init__(self, chunk=None):
        self.generator, self.discriminator = Encoder(IDS.size, chunk=chunk), Discriminator(IDS.size, chunk=chunk)
        self.generator.table = nnx.Param(2 * self.generator.table[...])


def drawn_one_by_one(logits, number):
    """The first token at which the sum of probabilities passes the number."""
    shares = np.exp(np.float64(logits) - np.float64(logits).max())
    sums, total = 0.0, shares.sum()
    for token, share in enumerate(shares):
        sums += share / total
        if sums > number:
            return token
    raise AssertionError("probabilities sum to less than 1")


def told_one_by_one(pair, rows, keys):
    """For each row its hidden places, cross-entropies there, what is read then, and cross-entropies of telling it."""
    example = example_of(ASK.masking, rows, keys)
    asked = dict(segments=None, positions=None, key=None)
    said = np.asarray(pair.generator.logits(pair.generator(example.tokens, **asked)))
    hidden, read = [], example.targets.copy()
    for row, key in enumerate(keys):
        numbers = np.asarray(jax.random.uniform(jax.random.fold_in(key, DRAWS), rows[row, :-1].shape))
        places = np.flatnonzero(example.weights[row])
        hidden.append([nats(said[row, place], example.targets[row, place]) for place in places])
        for place in places:
            read[row, place] = drawn_one_by_one(said[row, place], numbers[place])
    tells = np.asarray(pair.discriminator.classes(pair.discriminator(read, **asked)), np.float64)[..., 0]
    other = read != example.targets
    return hidden, read, other, -np.log(1 / (1 + np.exp(np.where(other, -tells, tells)))), (tells > 0) == other


def test_training_and_held_out_losses_are_those_of_a_loop():
    pair = Pair()
    hidden, _, other, telling, right = told_one_by_one(pair, ROWS, KEYS)
    losses, weights = jax.jit(lambda pair: ASK.losses(pair, ROWS, KEYS, dropout=KEY))(pair)
    expected = [np.mean(one) + 50 * two.mean() for one, two in zip(hidden, telling, strict=True)]
    np.testing.assert_allclose(losses[:, 0], expected, rtol=1e-5)
    assert weights.shape == losses.shape == (8, 1)
    found = jax.jit(lambda pair: ASK.graded(pair, ROWS, KEYS, dropout=None))(pair)
    np.testing.assert_allclose(found[0], telling, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[2], right)
    assert np.all(np.asarray(found[1]) == 1)
    assert np.all(np.asarray(found[3]) == 1)
    # A token drawn right counts as not replaced: there are some, so that the loop would notice.
    chosen = example_of(ASK.masking, ROWS, KEYS).weights > 0
    assert not other[~chosen].any()
    assert 0 < (chosen & ~other).sum() < chosen.sum()


def test_draws_follow_the_probabilities():
    logits = np.asarray([0.0, 1.0, -np.inf, 2.0, 0.5], np.float32)
    numbers = np.asarray(jax.random.uniform(KEY, (4, 5000)))
    tokens = np.asarray(draw(jnp.broadcast_to(logits, (4, 5000, 5)), numbers))
    shares = np.exp(logits) / np.exp(logits).sum()
    counts = np.bincount(tokens.ravel(), minlength=5)
    assert len(counts) == 5
    np.testing.assert_allclose(counts / 20_000, shares, atol=4 * np.sqrt(0.25 / 20_000))
    assert counts[2] == 0
    ends = np.asarray(draw(jnp.broadcast_to(logits, (1, 2, 5)), np.asarray([[0.0, 1 - 2**-24]], np.float32)))
    assert ends.tolist() == [[0, 4]]


def test_short_rows_are_asked_about_whole():
    """Of so few tokens all might be hidden."""
    rows = ROWS[:, :7]
    example = ASK.masking.example(rows, KEYS)
    assert example.places is None
    losses, tokens, _ = ASK.generated(Pair().generator, example, KEYS, dropout=None)
    assert losses.shape == tokens.shape == (8, 6)
    assert not np.asarray(losses)[np.asarray(example.weights) == 0].any()
    np.testing.assert_array_equal(np.where(example.weights, 0, tokens), np.where(example.weights, 0, rows[:, :-1]))


def test_rows_chunks_and_meshes_draw_the_same():
    def read(pair, rows, keys):
        example = ASK.masking.example(rows, keys)
        return ASK.generated(pair.generator, example, keys, dropout=None)[1]

    whole = np.asarray(jax.jit(read)(Pair(), ROWS, KEYS))
    np.testing.assert_array_equal(jax.jit(read)(Pair(chunk=8), ROWS, KEYS), whole)
    np.testing.assert_array_equal(jax.jit(read)(Pair(), ROWS[4:], KEYS[4:]), whole[4:])
    assert (np.asarray(jax.jit(read)(Pair(), ROWS, keys_of(8, first=8))) != whole).any(axis=1).all()
    with jax.set_mesh(mesh := device_mesh("fsdp=4,tensor=2")):
        np.testing.assert_array_equal(jax.jit(read)(Pair(), spread(ROWS, mesh), KEYS), whole)


def test_nothing_flows_back_through_the_draw():
    """The generator learns from its own loss alone, whatever the weight of the other."""

    def gradient(weight):
        ask = replace(ASK, weight=weight)
        return jax.jit(jax.grad(lambda pair: ask.losses(pair, ROWS, KEYS, dropout=KEY)[0].sum()))(Pair())

    one, other = gradient(1.0), gradient(50.0)
    np.testing.assert_allclose(one.generator.table[...], other.generator.table[...], rtol=1e-6)
    assert np.abs(np.asarray(one.generator.table[...])).max() > 1e-2
    told = np.asarray(one.discriminator.table[...])
    np.testing.assert_allclose(50 * told, other.discriminator.table[...], rtol=1e-4, atol=1e-5)


def test_labels_and_mistakes():
    assert ASK.label == "replaced-tokens-masked-40%-100/0"
    assert replace(ASK, weight=10.0).label == "replaced-tokens-masked-40%-100/0-x10"
    with pytest.raises(ValueError, match="weight 0 of telling them must be positive"):
        replace(ASK, weight=0.0)


IN_TRAINING = ReplacedTokens(masking=Masked(vocabulary=Vocabulary(size=260, extra=1), masked=1.0, random=0.0))


@pytest.fixture
def pair_run(run):
    architecture = zoo.electra_pair(width=16, depth=1, heads=2, share=0.5, vocab=260, length=LENGTH, std=None)
    return replace(run, architecture=architecture, objective=IN_TRAINING, steps=24)


def test_a_run_says_what_it_is(run, pair_run):
    assert Sides.of(pair_run.architecture) is Sides.DETECTION
    columns = pair_run.columns()
    assert columns["objective"] == "replaced-tokens-masked-15%-100/0"
    assert columns["tokens"] == 24 * 8 * LENGTH  # read twice, and seen once
    told, made = (side.cost(LENGTH).flops_per_token for side in pair_run.architecture.sides)
    unasked = LENGTH - IN_TRAINING.most(LENGTH)
    head = pair_run.architecture.generator.head.cost(260, 8, 16).flops_per_token
    assert unasked > 0
    assert columns["flops"] == pytest.approx((told + made - head * unasked / LENGTH) * columns["tokens"])
    with pytest.raises(ValueError, match="asks a generator and a discriminator, and bert is an encoder"):
        replace(pair_run, architecture=zoo.bert(width=16, depth=1, heads=2, vocab=260, length=LENGTH))
    with pytest.raises(ValueError, match="asks an encoder, and electra-pair is a generator and a discriminator"):
        replace(pair_run, objective=IN_TRAINING.masking)


@pytest.mark.slow
def test_a_run_is_the_same_stopped_in_parts_and_on_a_mesh(pair_run, prepared, tmp_path):
    one = train_to_end(pair_run, tmp_path / "one", prepared)
    train_until(pair_run, tmp_path / "two", prepared, calls=2)
    assert differences(train_to_end(pair_run, tmp_path / "two", prepared), one) == []
    many = train_to_end(pair_run, tmp_path / "many", prepared, devices=4, mesh="fsdp=4", accumulate=2, logits_chunk=8)
    np.testing.assert_allclose(losses(many), losses(one), rtol=1e-4)
    assert "bits_per_byte" not in one.result
    assert 0 < one.result["accuracy"] < 1


@pytest.mark.slow
def test_a_discriminator_learns_what_was_replaced(pair_run, prepared, tmp_path):
    """Better on rows never seen than one who knows how many tokens are replaced, and not which."""
    ask = replace(IN_TRAINING, masking=replace(IN_TRAINING.masking, share=0.3))
    architecture = zoo.electra_pair(width=64, depth=1, heads=4, vocab=260, length=LENGTH, std=None)
    schedule = replace(pair_run.schedule, peak=0.01)
    run = replace(pair_run, architecture=architecture, objective=ask, steps=1200, schedule=schedule)
    result = train_to_end(run, tmp_path / "run", prepared).result

    def share(model, rows):
        keys = keys_of(len(rows), key=jax.random.key(SEED))
        example = ask.masking.example(rows, keys)
        return (ask.generated(model.generator, example, keys, dropout=None)[1] != example.targets).mean()

    with jax.set_mesh(mesh := device_mesh("data=1", jax.devices()[:1])):
        rows = spread(prepared.held_out.take(np.arange(len(prepared.held_out))).astype(np.int32), mesh)
        replaced = float(jax.jit(share)(trained.load(tmp_path / "run", mesh).model, rows))
    blind = -replaced * np.log(replaced) - (1 - replaced) * np.log(1 - replaced)
    assert result["loss"] < blind - result["loss_se"]
