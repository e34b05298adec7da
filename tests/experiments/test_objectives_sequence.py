"""Sequence to sequence: teacher forcing, padding that costs nothing, and label smoothing by its formula."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from objective_cases import IDS, EncoderDecoder, assert_rows_stand_alone, example_of, nats

from experiments.objectives import SequenceToSequence, Vocabulary

PAIR = SequenceToSequence(vocabulary=IDS, inputs=5)
ROWS = np.asarray(
    [[10, 11, 12, 2, 0, 20, 21, 2, 0, 0], [13, 2, 0, 0, 0, 22, 23, 24, 25, 2], [14, 15, 16, 17, 2, 2, 0, 0, 0, 0]],
    np.int32,
)


def test_examples_by_hand():
    example = example_of(PAIR, ROWS)
    assert PAIR.lengths(9) == (5, 5)
    assert example.inputs.tolist() == [[10, 11, 12, 2, 0], [13, 2, 0, 0, 0], [14, 15, 16, 17, 2]]
    assert example.input_segments.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert example.tokens.tolist() == [[1, 20, 21, 2, 0], [1, 22, 23, 24, 25], [1, 2, 0, 0, 0]]
    assert example.targets.tolist() == [[20, 21, 2, 0, 0], [22, 23, 24, 25, 2], [2, 0, 0, 0, 0]]
    assert example.weights.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert example.segments.tolist() == example.weights.tolist()


def test_rows_stand_alone():
    assert_rows_stand_alone(PAIR, np.concatenate([ROWS, ROWS])[:4], meshes={"data=2": 2})


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("chunk", [None, 5])
def test_label_smoothing_is_its_formula_and_only_in_training(smoothing, chunk):
    model, objective = EncoderDecoder(IDS.size, chunk=chunk), replace(PAIR, smoothing=smoothing)
    example = example_of(objective, ROWS)
    segments = dict(input_segments=example.input_segments, target_segments=example.segments)
    logits = np.asarray(model.logits(model(example.inputs, example.tokens, key=None, **segments)))
    trained, weights = jax.jit(lambda model, key: objective.losses(model, ROWS, dropout=key))(model, jax.random.key(0))
    held_out, _ = jax.jit(lambda model: objective.losses(model, ROWS, dropout=None))(model)
    for place in np.ndindex(*weights.shape):
        if not weights[place]:
            assert trained[place] == held_out[place] == 0
            continue
        # Cross-entropy against a distribution that gives every id smoothing/size, and the target the rest besides.
        wanted = np.full(IDS.size, smoothing / IDS.size)
        wanted[example.targets[place]] += 1 - smoothing
        each = np.asarray([nats(logits[place], token) for token in range(IDS.size)])
        assert trained[place] == pytest.approx(wanted @ each, rel=1e-5)
        assert held_out[place] == pytest.approx(each[example.targets[place]], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(PAIR, smoothing=1.0), "smoothing 1 must be 0 or more and below 1"),
        (lambda: replace(PAIR, inputs=0), "0 columns hold no source"),
        (lambda: PAIR.lengths(4), "rows of 5 hold no target behind 5 of source"),
        (lambda: replace(PAIR, vocabulary=Vocabulary(size=10, pad=2)), "no id for padding alone"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
