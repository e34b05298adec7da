"""BART's noises: the same damage as loops over tokens do; nothing lost that was not to be; the right shares."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import IDS, EncoderDecoder, assert_rows_stand_alone, example_of, keys_of, text_rows

from experiments.objectives import Deletion, Denoising, Infilling, Permutation, Rotation, Vocabulary

FULL_STOP = 9
ALL = Denoising(vocabulary=IDS, noises=(Permutation(ends=(FULL_STOP,)), Infilling(), Deletion(share=0.1), Rotation()))
ROWS = text_rows(6, 41)


def poisson(draw, mean):
    """The Poisson variable at a quantile, by adding up its probabilities."""
    number, probability = 0, math.exp(-mean)
    total = probability
    while draw >= total:
        number += 1
        probability *= mean / number
        total += probability
    return number


def infilled(noise, tokens, length, key):
    sizes_key, places_key = jax.random.split(key)
    draws = np.asarray(jax.random.uniform(sizes_key, (max(1, math.floor(noise.share * length)),)))
    budget = taken = math.floor(noise.share * len(tokens))
    sizes = []
    for draw in draws[:budget]:
        if taken == 0:
            break
        sizes.append(taken if len(sizes) == budget - 1 else min(poisson(draw, noise.span), taken))
        taken -= sizes[-1]
    left = len(tokens) - sum(sizes)
    places = np.asarray(jax.random.uniform(places_key, (length + 1,)))
    gaps = sorted(range(left + 1), key=lambda gap: places[gap])
    spans = dict(zip(gaps, sizes, strict=False))
    out, tokens = [], list(tokens)
    for gap in range(left + 1):
        if gap in spans:
            out.append(IDS.mask)
            del tokens[: spans[gap]]
        if gap < left:
            out.append(tokens.pop(0))
    assert not tokens
    return out


def deleted(noise, tokens, length, key):
    draws = np.asarray(jax.random.uniform(key, (length,)))
    return [token for token, draw in zip(tokens, draws, strict=False) if draw >= np.float32(noise.share)]


def permuted(noise, tokens, length, key):
    sentences = [[]]
    for token in tokens:
        sentences[-1].append(token)
        if token in (*noise.ends, IDS.eos):
            sentences.append([])
    draws = np.asarray(jax.random.uniform(key, (length,)))
    order = sorted(range(len(sentences)), key=lambda number: draws[min(number, length - 1)])
    return [token for number in order for token in sentences[number]]


def rotated(noise, tokens, length, key):
    start = int(jax.random.randint(key, (), 0, len(tokens)))
    return tokens[start:] + tokens[:start]


LOOPS = {Infilling: infilled, Deletion: deleted, Permutation: permuted, Rotation: rotated}


@pytest.mark.parametrize(
    "noises",
    [(Infilling(),), (Infilling(share=0.5, span=1.0),), ALL.noises],
    ids=lambda noises: "+".join(noise.label for noise in noises),
)
def test_examples_are_those_of_loops_over_tokens(noises):
    objective = replace(ALL, noises=noises)
    example = example_of(objective, ROWS)
    for number, (row, key) in enumerate(zip(ROWS, keys_of(len(ROWS)), strict=True)):
        tokens, length = row[:-1].tolist(), len(row) - 1
        for noise, drawn in zip(noises, jax.random.split(key, len(noises)), strict=True):
            tokens = LOOPS[type(noise)](noise, tokens, length, drawn)
        padding = length - len(tokens)
        assert example.inputs[number].tolist() == tokens + [IDS.pad] * padding
        assert example.input_segments[number].tolist() == [1] * len(tokens) + [0] * padding
    np.testing.assert_array_equal(example.targets, ROWS[:, :-1])
    assert (example.tokens[:, 0] == IDS.bos).all()
    np.testing.assert_array_equal(example.tokens[:, 1:], ROWS[:, :-2])
    assert example.weights.all()


def inputs_of(noise, rows):
    example = example_of(replace(ALL, noises=(noise,)), rows)
    return [row[real > 0] for row, real in zip(example.inputs, example.input_segments, strict=True)]


LONG = text_rows(200, 129)


def test_infilling_takes_its_share_in_spans_of_its_mean():
    found = inputs_of(Infilling(), LONG)
    masks = np.asarray([(row == IDS.mask).sum() for row in found])
    kept = np.asarray([(row != IDS.mask).sum() for row in found])
    assert (kept == 128 - math.floor(0.3 * 128)).all()
    # 38 tokens in spans of Poisson length 3: about 38/3 of them, one more for the one that is cut.
    assert masks.mean() == pytest.approx(38 / 3 + 0.5, abs=0.5)
    assert not any((row[1:] == IDS.mask)[row[:-1] == IDS.mask].any() for row in found)
    # Masks are anywhere, at either end too.
    assert any(row[0] == IDS.mask for row in found)
    assert any(row[-1] == IDS.mask for row in found)


def test_deletion_keeps_the_order_and_the_rest():
    found = inputs_of(Deletion(), LONG)
    gone = 1 - sum(map(len, found)) / LONG[:, :-1].size
    assert gone == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / LONG[:, :-1].size))
    for row, text in zip(found[:20], LONG, strict=False):
        rest = iter(text[:-1].tolist())
        assert all(token in rest for token in row.tolist())


def test_permutation_and_rotation_lose_nothing():
    for noise in (Permutation(ends=(FULL_STOP,)), Rotation()):
        found = np.asarray(inputs_of(noise, LONG))
        np.testing.assert_array_equal(np.sort(found), np.sort(LONG[:, :-1]))
        assert (found != LONG[:, :-1]).any(axis=1).mean() > 0.9


def test_rows_stand_alone():
    assert_rows_stand_alone(ALL, ROWS[:4], meshes={"data=2,tensor=2": 4})


def test_losses_are_of_the_whole_text():
    model = EncoderDecoder(IDS.size)
    losses, weights = jax.jit(lambda model: ALL.losses(model, ROWS, keys_of(6), dropout=None))(model)
    assert losses.shape == weights.shape == (6, 40)
    assert jnp.isfinite(losses).all()
    assert ALL.lengths(40) == (40, 40)


def test_labels_tell_objectives_apart():
    assert ALL.label == "denoising-permutation+infilling-30%-of-3+deletion-10%+rotation"
    assert Denoising(vocabulary=IDS).label == "denoising-infilling-30%-of-3"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Infilling(share=0.6), "share 0.6 must be above 0 and at most 0.5"),
        (lambda: Infilling(span=0.5), "mean span 0.5 at least 1"),
        (lambda: Deletion(share=0.0), "share 0 must be above 0 and below 1"),
        (lambda: replace(ALL, noises=()), "give at least one noise"),
        (lambda: replace(ALL, vocabulary=Vocabulary(size=90)), "needs 1 reserved ids"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
