"""Prefix language modelling: each document is cut where its draw says, and only the rest is predicted."""

import itertools

import jax
import numpy as np
import pytest
from objective_cases import IDS, assert_rows_stand_alone, example_of, keys_of, nats, text_rows

from experiments.objectives import Causal, Prefixed
from models import zoo
from models.execution import Execution
from models.layers import initialize
from models.positions import Positions
from models.transformer import declare
from parallel.mesh import device_mesh

PREFIXED = Prefixed(bos=IDS.bos)
ROWS = text_rows(6, 41)


def one_document_at_a_time(row, key):
    """Which positions are prefix, and which targets count, from the same draws."""
    starts = [0, *(place for place, token in enumerate(row[:-1]) if token == IDS.bos and place), len(row) - 1]
    draws = np.asarray(jax.random.uniform(key, (len(row),)))
    first = 1 if row[0] == IDS.bos else 0
    prefix, counts = [], []
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        size = end - start
        cut = int(np.floor(draws[first + number] * np.float32(size)))
        prefix += [True] * cut + [False] * (size - cut)
        for place in range(start, end):
            counts.append(float(row[place + 1] != IDS.bos and place + 1 - start >= cut))
    return prefix, counts


def test_examples_are_those_of_a_loop_over_documents():
    example = example_of(PREFIXED, ROWS)
    for number, (row, key) in enumerate(zip(ROWS, keys_of(len(ROWS)), strict=True)):
        prefix, counts = one_document_at_a_time(row, key)
        assert example.prefix[number].tolist() == prefix
        assert example.weights[number].tolist() == counts
    causal = Causal(bos=IDS.bos).example(ROWS)
    for name in ("tokens", "targets", "segments", "positions"):
        np.testing.assert_array_equal(getattr(example, name), getattr(causal, name))


def test_cuts_are_anywhere_in_a_document():
    rows = np.tile(np.asarray([IDS.bos, *range(10, 18)], np.int32), (4000, 1))
    cuts = example_of(PREFIXED, rows).prefix.sum(axis=1)
    found = np.bincount(cuts, minlength=8)
    assert len(found) == 8
    # Chi-squared with 7 degrees of freedom is below 24.3 in 999 of 1000 samples.
    assert ((found - 500) ** 2 / 500).sum() < 24.3


def test_rows_stand_alone():
    assert_rows_stand_alone(PREFIXED, ROWS[:4], meshes={"data=2": 2})


def test_a_decoder_sees_its_prefix_and_nothing_else_ahead():
    with jax.set_mesh(device_mesh("data=1", jax.devices()[:1])):
        architecture = zoo.decoder(width=16, depth=2, heads=2, vocab=IDS.size, length=40, positions=Positions.ROTARY)
        declared = declare(architecture, execution=Execution())
        model = jax.jit(lambda key: initialize(declared, key, declared.execution.rules))(jax.random.key(0))
        losses = jax.jit(lambda model, rows, keys: PREFIXED.losses(model, rows, keys, dropout=None))
        keys = keys_of(len(ROWS))
        before, weights = map(np.asarray, losses(model, ROWS, keys))
        example = example_of(PREFIXED, ROWS)

        # A token of a prefix changes what is said first behind it; a token behind changes nothing before it.
        number = next(i for i in range(len(ROWS)) if 3 <= example.prefix[i].argmin() < 30)
        cut = int(example.prefix[number].argmin())
        inside, behind = ROWS.copy(), ROWS.copy()
        inside[number, cut - 1] = 50 if ROWS[number, cut - 1] != 50 else 51
        place = cut + 3
        behind[number, place] = 50 if ROWS[number, place] != 50 else 51
        if IDS.bos not in (ROWS[number, cut - 1], *ROWS[number, cut : place + 1]):
            assert losses(model, inside, keys)[0][number, cut] != before[number, cut]
        np.testing.assert_array_equal(losses(model, behind, keys)[0][number, : place - 1], before[number, : place - 1])

        # With no prefix it is the causal loss.
        logits = jax.jit(lambda model: model.logits(model(ROWS[:, :-1], segments=example.segments)))(model)
        free = ~(example.prefix & True).any(axis=1)
        for row in np.flatnonzero(free):
            for place in np.flatnonzero(weights[row]):
                assert before[row, place] == pytest.approx(nats(logits[row, place], ROWS[row, place + 1]), rel=1e-4)
