"""Masked language modelling: the same examples as a loop over tokens draws, in the right shares, and their losses."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from objective_cases import IDS, Encoder, assert_rows_stand_alone, example_of, keys_of, nats, text_rows
from scipy.stats import binom

from experiments.objectives import Causal, Masked, Vocabulary
from experiments.objectives.cross_entropy import token_losses

MASKED = Masked(vocabulary=IDS)
ROWS = text_rows(8, 33)


def one_token_at_a_time(objective, row, key):
    """What the model reads and which places count, from the same draws."""
    ids, read, counts = objective.vocabulary, [], []
    whether, how, what = jax.random.split(key, 3)
    shape = (len(row) - 1,)
    draws = jax.random.uniform(whether, shape), jax.random.uniform(how, shape)
    others = jax.random.randint(what, shape, ids.first, ids.end, np.int32)
    for token, choice, kind, other in zip(row[:-1], *map(np.asarray, (*draws, others)), strict=True):
        counts.append(0)
        if ids.first <= token < ids.size - ids.extra and choice < objective.share:
            counts[-1] = 1
            if kind < objective.masked:
                token = ids.size - ids.extra
            elif kind < objective.masked + objective.random:
                token = other
        read.append(token)
    return read, counts


@pytest.mark.parametrize("objective", [MASKED, replace(MASKED, share=0.6, masked=0.2, random=0.5)])
def test_examples_are_those_of_a_loop_over_tokens(objective):
    example = example_of(objective, ROWS)
    for number, (row, key) in enumerate(zip(ROWS, keys_of(len(ROWS)), strict=True)):
        read, counts = one_token_at_a_time(objective, row, key)
        assert example.tokens[number].tolist() == read
        assert example.weights[number].tolist() == counts
    np.testing.assert_array_equal(example.targets, ROWS[:, :-1])
    causal = Causal(bos=IDS.bos).example(ROWS)
    np.testing.assert_array_equal(example.segments, causal.segments)
    np.testing.assert_array_equal(example.positions, causal.positions)


def test_shares_are_those_that_were_asked_for():
    rows = text_rows(400, 129)
    example = example_of(MASKED, rows)
    text = (rows[:, :-1] >= IDS.first) & (rows[:, :-1] < IDS.end)
    chosen = example.weights > 0
    assert not chosen[~text].any()

    def within(found, share, of):
        assert abs(found - share * of) < 4 * np.sqrt(of * share * (1 - share)), (found / of, share)

    within(chosen.sum(), 0.15, text.sum())
    read, was = example.tokens[chosen], example.targets[chosen]
    within((read == IDS.mask).sum(), 0.8, chosen.sum())
    # A random token is the old one once in as many times as there are tokens.
    within((read == was).sum(), 0.1 + 0.1 / (IDS.end - IDS.first), chosen.sum())
    other = read[(read != IDS.mask) & (read != was)]
    assert {other.min(), other.max()} == {IDS.first, IDS.end - 1}
    np.testing.assert_array_equal(example.tokens[~chosen], rows[:, :-1][~chosen])
    # Places are chosen alike, the first and the last too.
    by_place = chosen.sum(axis=0) / text.sum(axis=0)
    assert np.abs(by_place - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / text.sum(axis=0).min())


def test_rows_stand_alone():
    assert_rows_stand_alone(MASKED, ROWS)


def test_other_keys_are_other_masks():
    one, other = example_of(MASKED, ROWS), example_of(MASKED, ROWS, keys_of(8, key=jax.random.key(8)))
    assert (one.weights != other.weights).any(axis=1).all()
    same = np.repeat(ROWS[:1], 8, axis=0)
    assert len({row.tobytes() for row in example_of(MASKED, same).weights}) == 8


def test_losses_are_of_the_chosen_places_alone():
    model, keys, asked = Encoder(IDS.size), keys_of(8), MASKED.most(32)
    losses, weights = jax.jit(lambda model: MASKED.losses(model, ROWS, keys, dropout=None))(model)
    example = example_of(MASKED, ROWS)
    hidden = model(example.tokens, segments=None, positions=None, key=None)
    logits = np.asarray(model.logits(hidden))
    assert losses.shape == weights.shape == (8, asked) != (8, 32)
    for row in range(8):
        expected = [nats(logits[row, place], ROWS[row, place]) for place in np.flatnonzero(example.weights[row])]
        np.testing.assert_allclose(losses[row], np.pad(expected, (0, asked - len(expected))), rtol=1e-5)
        np.testing.assert_array_equal(weights[row], np.arange(asked) < len(expected))
    assert weights.sum() > 10


def test_gradients_are_those_of_logits_everywhere():
    """Also with logits in chunks, the last of which is shorter."""

    def total(model, ask):
        return ask(model, ROWS, keys_of(8), dropout=None)[0].sum()

    def everywhere(model, rows, keys, *, dropout):
        return token_losses(model, MASKED.example(rows, keys)._replace(places=None), dropout=dropout)

    expected = jax.jit(jax.grad(lambda model: total(model, everywhere)))(Encoder(IDS.size))
    for chunk in (None, 5):
        found = jax.jit(jax.grad(lambda model: total(model, MASKED.losses)))(Encoder(IDS.size, chunk=chunk))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


class Three(Masked):
    """Never asks about more than three tokens."""

    def most(self, length):
        return 3


def test_no_more_than_the_most_are_chosen():
    """The first ones of those that would be; what comes after stays as it is."""
    before, after = example_of(MASKED, ROWS), example_of(Three(vocabulary=IDS), ROWS)
    assert (before.weights.sum(axis=1) > 3).any()
    for row in range(8):
        first = np.flatnonzero(before.weights[row])[:3]
        np.testing.assert_array_equal(np.flatnonzero(after.weights[row]), first)
        assert set(first) <= set(after.places[row])
        kept = np.where(np.isin(np.arange(32), first), before.tokens[row], ROWS[row, :-1])
        np.testing.assert_array_equal(after.tokens[row], kept)


@pytest.mark.parametrize(("share", "length"), [(0.15, 64), (0.15, 512), (0.4, 1024)])
def test_the_most_is_never_reached_by_chance(share, length):
    asked = replace(MASKED, share=share).most(length)
    assert asked < 0.72 * length
    assert binom.sf(asked, length, share) < 1e-7


def test_labels_tell_objectives_apart():
    assert MASKED.label == "masked-15%"
    others = [replace(MASKED, share=0.3), replace(MASKED, masked=1.0, random=0.0), replace(MASKED, random=0.2)]
    assert [other.label for other in others] == ["masked-30%", "masked-15%-100/0", "masked-15%-80/20"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(share=0.0), "share 0 of tokens to predict must be above 0 and at most 1"),
        (dict(masked=0.8, random=0.3), "0.8 masked and 0.3 random of the predicted tokens are not shares of 1"),
        (dict(vocabulary=Vocabulary(size=100)), "needs 1 reserved ids and the vocabulary has 0; reserve more"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(MASKED, **change)


def test_reserved_ids_do_not_overlap():
    assert (IDS.end, IDS.mask, IDS.mode(0), IDS.mode(2)) == (70, 70, 71, 73)
    assert list(IDS.sentinels(3)) == [99, 98, 97]
    assert min(IDS.sentinels(29)) == IDS.mask + 1
    assert min(IDS.sentinels(26, modes=3)) == IDS.mode(2) + 1
    with pytest.raises(ValueError, match="needs 31 reserved ids and the vocabulary has 30"):
        IDS.sentinels(30)
    with pytest.raises(ValueError, match="leave no token"):
        Vocabulary(size=10, extra=6)
    with pytest.raises(ValueError, match="must be below the first ordinary token, 4"):
        Vocabulary(size=10, eos=4)
