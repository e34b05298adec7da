"""Masked text with a question about pairs: examples of a loop, the question's losses, what commands make of it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import IDS, KEY, assert_rows_stand_alone, example_of, keys_of, nats, text_rows
from training_cases import LENGTH, differences, losses, train_to_end, train_until

from experiments.commands import train
from experiments.commands.options import ModelOptions, TextOptions
from experiments.data.tokenizer import ByteTokenizer
from experiments.evaluation import row_losses
from experiments.objectives import Masked, Relation, SentencePairs, Vocabulary
from experiments.objectives.named import Name, named
from experiments.objectives.sentences import COIN
from models import zoo
from models.execution import Execution
from models.layers import initialize
from models.transformer import declare
from parallel.mesh import device_mesh

MASKED = Masked(vocabulary=IDS, share=0.4)
ASKS = {relation: SentencePairs(masking=MASKED, relation=relation) for relation in Relation}
ROWS = text_rows(8, 33)


def pair_by_hand(relation, row, turned):
    """The tokens that were there, and the kind of each."""
    if relation is Relation.ORDER:
        size = (len(row) - 4) // 2
        first, second = row[:size], row[size : 2 * size]
        first, second = (second, first) if turned else (first, second)
    else:
        size = len(row) // 3
        first, second = row[:size], row[2 * size : 3 * size] if turned else row[size : 2 * size]
    tokens = [IDS.bos, *first, IDS.eos, *second, IDS.eos]
    return tokens, [0] * (size + 2) + [1] * (size + 1)


@pytest.mark.parametrize("relation", Relation)
def test_examples_are_those_of_a_loop(relation):
    ask, keys = ASKS[relation], keys_of(len(ROWS))
    example = example_of(ask, ROWS)
    (length,) = ask.lengths(32)
    assert example.tokens.shape == (8, length)
    assert length == {Relation.ORDER: 2 * 14 + 3, Relation.NEXT: 2 * 11 + 3}[relation]
    for number, (row, key) in enumerate(zip(ROWS, keys, strict=True)):
        turned = bool(jax.random.bernoulli(jax.random.fold_in(key, COIN)))
        tokens, types = pair_by_hand(relation, row, turned)
        assert example.relation[number].tolist() == [int(turned)]
        assert example.targets[number].tolist() == tokens
        assert example.types[number].tolist() == types
        read, chosen = MASKED.hide(jnp.asarray(tokens), key)
        assert example.tokens[number].tolist() == read.tolist()
        assert example.weights[number].tolist() == chosen.tolist()
    assert 0 < example.relation.sum() < 8
    assert set(np.unique(example.targets[example.weights > 0])) <= set(range(IDS.first, IDS.end))


def test_rows_stand_alone_and_coins_are_fair():
    for relation, meshes in ((Relation.ORDER, {"fsdp=4,tensor=2": 8}), (Relation.NEXT, {})):
        assert_rows_stand_alone(ASKS[relation], ROWS, meshes=meshes)
    rows = np.repeat(ROWS[:1], 2000, axis=0)
    turned = example_of(ASKS[Relation.ORDER], rows).relation
    assert abs(turned.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def reading(types=2, classes=2, make=jax.jit):
    architecture = zoo.bert(width=16, depth=1, heads=2, vocab=IDS.size, length=32, classes=classes, types=types)
    declared = declare(architecture, execution=Execution())
    return make(lambda key: initialize(declared, key, declared.execution.rules))(jax.random.key(0))


def test_losses_are_of_hidden_tokens_and_of_the_question():
    ask, keys = ASKS[Relation.ORDER], keys_of(8)
    example = example_of(ask, ROWS)
    with jax.set_mesh(device_mesh("data=1", jax.devices()[:1])):
        model = reading()
        told = jax.jit(lambda model, types: (lambda last: (model.logits(last), model.classes(last)))(
            model(example.tokens, types=types)))  # fmt: skip
        logits, classes = map(np.asarray, told(model, example.types))
        # Did the model not see which stretch is which, it would say something else.
        assert np.abs(np.asarray(told(model, 1 - example.types)[1]) - classes).max() > 1e-5
        trained, ones = jax.jit(lambda model: ask.losses(model, ROWS, keys, dropout=KEY))(model)
        held_out = jax.jit(lambda model: ask.graded(model, ROWS, keys, dropout=None))(model)
        sums = row_losses(model, ROWS, jnp.arange(8, dtype=jnp.int32), objective=ask)
    assert np.all(np.asarray(ones) == 1)
    for row in range(8):
        each = np.zeros(example.tokens.shape[1])
        for place in np.flatnonzero(example.weights[row]):
            each[place] = nats(logits[row, place], example.targets[row, place])
        question = nats(classes[row, 0], example.relation[row, 0])
        hidden = each.sum() / example.weights[row].sum()
        assert trained[row, 0] == pytest.approx(hidden + question, rel=1e-5)
        np.testing.assert_allclose(held_out[0][row], each[example.places[row]], rtol=1e-5)
        assert held_out[2][row, 0] == (classes[row, 0].argmax() == example.relation[row, 0])
    np.testing.assert_array_equal(held_out[1], np.take_along_axis(example.weights, example.places, axis=1))
    assert [one.shape for one in sums] == [(8,)] * 4
    assert np.all(np.asarray(sums[3]) == 1)  # one question a row, however many tokens are hidden


def test_a_model_must_tell_two_classes():
    with jax.set_mesh(device_mesh("data=1", jax.devices()[:1])):

        def losses(**settings):
            model = reading(**settings, make=lambda init: partial(jax.eval_shape, init))
            return jax.eval_shape(lambda m: ASKS[Relation.NEXT].losses(m, ROWS, keys_of(8), dropout=None), model)

        with pytest.raises(ValueError, match="the model tells 3 classes at 1 places of a row, and 2 at one place"):
            losses(classes=3)
        with pytest.raises(ValueError, match="bert: the architecture has no classifier"):
            losses(classes=None)
        assert losses(types=1)[0].shape == (8, 25)  # kinds of tokens that are none are not told
    for relation, ask in ASKS.items():
        with pytest.raises(ValueError, match=f"{relation.value}: rows of 5 tokens hold no pair"):
            ask.lengths(4)


def test_labels_and_names():
    assert ASKS[Relation.ORDER].label == "masked-40%-and-sentence-order"
    tokenizer = ByteTokenizer(1)
    for name in (Name.NEXT, Name.ORDER):
        ask = named(name, tokenizer)
        assert ask == SentencePairs(masking=named(Name.MASKED, tokenizer), relation=Relation(name.value))
        assert ask.label == f"masked-15%-and-{name.value}"


IDS_OF_BYTES = Vocabulary(size=260, extra=1)


class Reserving:
    """Prepared rows, as if their tokenizer had reserved its last id, which is in no text."""

    def __init__(self, prepared):
        self.tokenizer, self.fingerprint = ByteTokenizer(1), prepared.fingerprint
        self.metadata = replace(prepared.metadata, vocab=261)


def test_commands_give_the_model_what_it_answers_with(prepared):
    shape, rows, reserving = dict(width=16, depth=1, heads=2), TextOptions(length=LENGTH), Reserving(prepared)
    for name in (Name.NEXT, Name.ORDER):
        model = ModelOptions(family="bert", **shape)
        run = train.Command(data=rows, model=model, objective=name, steps=3).run(reserving)
        assert run.architecture.classifier.classes == 2
        assert run.architecture.head
        assert run.batch_tokens == 8 * run.objective.lengths(LENGTH)[0]
    run = train.Command(data=rows, model=ModelOptions(family="electra-pair", **shape), steps=3).run(reserving)
    assert run.objective == named(Name.REPLACED, reserving.tokenizer)
    with pytest.raises(ValueError, match="modernbert: there is no setting 'classes'"):
        train.Command(data=rows, model=ModelOptions(family="modernbert", **shape), objective=name).run(reserving)


@pytest.mark.slow
@pytest.mark.parametrize("relation", Relation)
def test_a_run_is_the_same_stopped_in_parts_and_on_a_mesh(run, prepared, tmp_path, relation):
    run = replace(
        run,
        architecture=zoo.bert(width=16, depth=1, heads=2, vocab=260, length=LENGTH, classes=2),
        objective=SentencePairs(masking=Masked(vocabulary=IDS_OF_BYTES), relation=relation),
        steps=24,
    )
    one = train_to_end(run, tmp_path / "one", prepared)
    train_until(run, tmp_path / "two", prepared, calls=2)
    assert differences(train_to_end(run, tmp_path / "two", prepared), one) == []
    many = train_to_end(run, tmp_path / "many", prepared, devices=4, mesh="fsdp=2,tensor=2", accumulate=2)
    np.testing.assert_allclose(losses(many), losses(one), rtol=1e-4)
    assert 0 < one.result["accuracy"] < 1
