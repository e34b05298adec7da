"""Objectives by name, what each model is usually asked, and an encoder-decoder trained from a run to its result."""

from dataclasses import replace

import numpy as np
import pytest
from training_cases import LENGTH, losses, train_to_end

from experiments.commands import sweep, train
from experiments.commands.options import FamilyOptions, ModelOptions, TextOptions
from experiments.data.tokenizer import ByteTokenizer
from experiments.objectives import (
    Causal,
    Denoising,
    Masked,
    Mixture,
    Prefixed,
    Sides,
    SpanCorruption,
    Vocabulary,
)
from experiments.objectives.named import USUAL, Name, named
from models import zoo
from models.attention import Visibility
from models.positions import Positions


@pytest.mark.parametrize(
    ("name", "kind", "label"),
    [
        (Name.CAUSAL, Causal, "causal"),
        (Name.PREFIX, Prefixed, "prefix"),
        (Name.MASKED, Masked, "masked-15%"),
        (Name.SPANS, SpanCorruption, "span-corruption-15%-spans-of-3"),
        (Name.UL2, Mixture, "mixture-15%-spans-of-3-mode-0+"),
        (Name.INFILLING, Denoising, "denoising-infilling-30%-of-3"),
    ],
)
def test_a_name_is_an_objective_of_the_tokenizers_ids(name, kind, label):
    found = named(name, ByteTokenizer(100))
    assert type(found) is kind
    assert found.label.startswith(label)
    if kind in (Causal, Prefixed):
        assert found.bos == ByteTokenizer.bos
    else:
        assert found.vocab == 360
        with pytest.raises(ValueError, match=r"reserved ids and the vocabulary has 0; reserve more .*--data.extra"):
            named(name, ByteTokenizer()).lengths(64)


def test_every_model_is_asked_what_it_can_answer():
    for sides, name in USUAL.items():
        assert sides in named(name, ByteTokenizer(100)).sides


def test_a_vocabulary_is_that_of_a_tokenizer():
    assert Vocabulary.of(ByteTokenizer(3)) == Vocabulary(size=263, extra=3, pad=0, bos=1, eos=2, first=4)


class Reserving:
    """Prepared rows, as if their tokenizer had reserved its last id, which is in no text."""

    def __init__(self, prepared):
        self.tokenizer, self.fingerprint = ByteTokenizer(1), prepared.fingerprint
        self.metadata = replace(prepared.metadata, vocab=261)


def test_commands_ask_what_is_usual_or_named(prepared):
    shape, rows = dict(width=16, depth=1, heads=2), TextOptions(length=LENGTH)
    reserving = Reserving(prepared)
    run = train.Command(data=rows, model=ModelOptions(family="bert", **shape), steps=3).run(reserving)
    assert run.objective == Masked(vocabulary=Vocabulary.of(reserving.tokenizer))
    assert train.Command(data=rows, model=ModelOptions(**shape), steps=3).run(prepared).objective == Causal(bos=1)
    run = train.Command(data=rows, model=ModelOptions(**shape), objective=Name.PREFIX, steps=3).run(prepared)
    assert run.objective == Prefixed(bos=1)
    with pytest.raises(ValueError, match="run: masked-15% asks an encoder, and decoder is a decoder"):
        train.Command(data=rows, model=ModelOptions(**shape), objective=Name.MASKED, steps=3).run(reserving)
    cells = sweep.Command(data=rows, model=FamilyOptions(family="bert"), budgets=(1e11,), sizes=3).cells(reserving)
    assert {cell.run.objective.label for cell in cells} == {"masked-15%"}


def pair_of_stacks():
    """An encoder and a decoder of one block each."""
    alone = zoo.decoder(width=16, depth=1, heads=2, vocab=260, length=LENGTH)
    (block,) = alone.decoder.pattern
    both_ways = replace(block.mixer, visibility=Visibility.BIDIRECTIONAL)
    crossing = replace(block, cross=replace(both_ways, positions=Positions.NONE))
    return replace(
        alone,
        encoder=replace(alone.decoder, pattern=(replace(block, mixer=both_ways),)),
        decoder=replace(alone.decoder, pattern=(crossing,)),
    )


@pytest.mark.slow
def test_an_encoder_decoder_learns_to_fill_in_spans(run, prepared, tmp_path):
    objective = SpanCorruption(vocabulary=Vocabulary(size=260, extra=5), density=0.3)
    run = replace(run, architecture=pair_of_stacks(), objective=objective, steps=40)
    inputs, targets = objective.lengths(LENGTH)
    assert (inputs, targets) == (16 - 5 + 2 + 1, 5 + 2 + 1)
    assert run.batch_tokens == 8 * (inputs + targets)
    columns = run.columns()
    assert columns["objective"] == "span-corruption-30%-spans-of-3"
    assert columns["flops"] == run.architecture.cost(targets, inputs).flops(40 * 8 * (inputs + targets))

    one = train_to_end(run, tmp_path / "one", prepared)
    many = train_to_end(run, tmp_path / "many", prepared, devices=4, mesh="fsdp=2,tensor=2", accumulate=2)
    np.testing.assert_allclose(losses(many), losses(one), rtol=1e-4)
    assert one.result["loss"] < 0.9 * one.metrics[0]["loss"]
    assert "bits_per_byte" not in one.result


def test_sides_are_those_of_the_architecture():
    decoder = zoo.decoder(width=16, depth=1, heads=2, vocab=260, length=8)
    assert Sides.of(decoder) is Sides.DECODER
    assert Sides.of(pair_of_stacks()) is Sides.BOTH
    assert Sides.of(zoo.bert(width=16, depth=1, heads=2, vocab=260, length=8)) is Sides.ENCODER
