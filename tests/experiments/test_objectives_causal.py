"""What is predicted from what: packed documents train exactly as separate ones."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from experiments.objectives import Causal, cross_entropy
from models import zoo
from models.execution import Execution
from models.head import Tying
from models.layers import initialize
from models.positions import Positions
from models.transformer import Decoder
from parallel.mesh import device_mesh

BOS, EOS = 1, 2
OBJECTIVE = Causal(bos=BOS)
# Three documents, the last cut off by the row's end, as rows on disk hold them.
DOCUMENTS = [[BOS, 10, 11, 12, 13, EOS], [BOS, 20, EOS], [BOS, 30, 31, 32, 33, 34, 35, 36]]
PACKED = np.concatenate(DOCUMENTS).astype(np.int32)[None]


@pytest.fixture(autouse=True)
def _mesh():
    with jax.set_mesh(device_mesh("data=1", jax.devices()[:1])):
        yield


def build(positions, execution=Execution()):
    architecture = zoo.decoder(width=16, depth=1, heads=2, vocab=40, length=16, positions=positions, tying=Tying.UNTIED)
    declared = Decoder(architecture, execution=execution)
    return jax.jit(lambda key: initialize(declared, key, execution.rules))(jax.random.key(0))


def losses(model, rows, objective=OBJECTIVE):
    return [np.asarray(array) for array in jax.jit(partial(objective.losses, dropout=None))(model, rows)]


def test_segments_positions_and_weights_by_hand():
    example = OBJECTIVE.example(PACKED)
    assert example.tokens.tolist() == [[1, 10, 11, 12, 13, 2, 1, 20, 2, 1, 30, 31, 32, 33, 34, 35]]
    assert example.targets.tolist() == [[10, 11, 12, 13, 2, 1, 20, 2, 1, 30, 31, 32, 33, 34, 35, 36]]
    assert example.segments.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3]]
    assert example.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6]]
    # The end of a document is predicted, the beginning of the next is not.
    assert example.weights.tolist() == [[1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]]


def test_a_row_that_begins_in_mid_document():
    example = OBJECTIVE.example(np.asarray([[5, 6, EOS, BOS, 7, 8]], np.int32))
    assert example.segments.tolist() == [[0, 0, 0, 1, 1]]
    assert example.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert example.weights.tolist() == [[1, 1, 0, 1, 1]]


@pytest.mark.parametrize("positions", [Positions.ROTARY, Positions.LEARNED])
def test_packed_is_separate(positions):
    model = build(positions)
    packed, weights = losses(model, PACKED)
    # Each document at the beginning of a row of its own; what fills the row up comes later and is not predicted.
    alone = np.full((len(DOCUMENTS), PACKED.shape[1]), BOS, np.int32)
    for row, document in zip(alone, DOCUMENTS, strict=True):
        row[: len(document)] = document
    separate, alone_weights = losses(model, alone)
    expected = [separate[number, : len(document) - 1] for number, document in enumerate(DOCUMENTS)]
    found = packed[weights > 0]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=2e-6)
    assert alone_weights.sum() == weights.sum() == sum(len(document) - 1 for document in DOCUMENTS)

    def blind(objective, model, rows):
        example = objective.example(rows)
        return cross_entropy(model, model(example.tokens), example.targets) * example.weights

    # The comparison sees a model that does not keep documents apart.
    mixed = np.asarray(jax.jit(partial(blind, OBJECTIVE))(model, PACKED))[weights > 0]
    assert np.abs(mixed - np.concatenate(expected)).max() > 1e-2


def test_a_change_in_one_document_does_not_reach_another():
    model = build(Positions.ROTARY)
    before, weights = losses(model, PACKED)
    changed = PACKED.copy()
    changed[0, 2] = 25
    after, _ = losses(model, changed)
    moved = before != after
    assert moved[0, 1:5].any()
    assert not moved[0, 6:].any()
    assert not before[weights == 0].any()


@pytest.mark.parametrize("chunk", [4, 5, 16])
def test_logits_in_chunks_are_the_same_loss_and_gradient(chunk):
    def total(model):
        return OBJECTIVE.losses(model, PACKED, dropout=None)[0].sum()

    whole, chunked = build(Positions.ROTARY), build(Positions.ROTARY, replace(Execution(), logits_chunk=chunk))
    expected, found = (jax.jit(jax.value_and_grad(total))(model) for model in (whole, chunked))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for left, right in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
