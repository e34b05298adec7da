"""Span corruption and mixtures: the same examples as loops over tokens; every token once; the right shares."""

import itertools
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from objective_cases import IDS, EncoderDecoder, assert_rows_stand_alone, example_of, keys_of, nats, text_rows

from experiments.objectives import Mixture, SpanCorruption, Vocabulary, ul2

SPANS = SpanCorruption(vocabulary=IDS)
DENSE = SpanCorruption(vocabulary=IDS, density=0.5, span=2.0, mode=2)
END = SpanCorruption(vocabulary=IDS, density=0.25, span=None, mode=1)
ONE_EACH = SpanCorruption(vocabulary=IDS, density=0.1, span=1.0)
ROWS = text_rows(6, 41)


def sizes(total, parts, key):
    """Where to cut, from the same draws, one part at a time."""
    draws = np.asarray(jax.random.uniform(key, (total - 1,)))
    cuts = sorted(sorted(range(total - 1), key=lambda place: draws[place])[: parts - 1])
    found, before = [], 0
    for cut in [*(cut + 1 for cut in cuts), total]:
        found.append(cut - before)
        before = cut
    return found


def one_span_at_a_time(objective, row, key):
    """Inputs and targets of a row, built by appending."""
    text, ids = list(row[:-1]), objective.vocabulary
    cut = round(len(text) * objective.density)
    spans = 1 if objective.span is None else max(1, round(cut / objective.span))
    kept_key, cut_key = jax.random.split(key)
    inputs = [] if objective.mode is None else [ids.size - ids.extra + 1 + objective.mode]
    targets = []
    for number, (keep, take) in enumerate(
        zip(sizes(len(text) - cut, spans, kept_key), sizes(cut, spans, cut_key), strict=True)
    ):
        sentinel = ids.size - 1 - number
        inputs += text[:keep] + [sentinel]
        targets += [sentinel] + text[keep : keep + take]
        text = text[keep + take :]
    assert not text
    return inputs + [ids.eos], targets + [ids.eos]


@pytest.mark.parametrize("objective", [SPANS, DENSE, END, ONE_EACH], ids=lambda objective: objective.label)
def test_examples_are_those_of_a_loop_over_spans(objective):
    example = example_of(objective, ROWS)
    for number, (row, key) in enumerate(zip(ROWS, keys_of(len(ROWS)), strict=True)):
        inputs, targets = one_span_at_a_time(objective, row, key)
        assert example.inputs[number].tolist() == inputs
        assert example.targets[number].tolist() == targets
        assert example.tokens[number].tolist() == [IDS.bos, *targets[:-1]]
        assert objective.lengths(ROWS.shape[1] - 1) == (len(inputs), len(targets))
    assert example.weights.all()
    assert example.segments.all()
    assert example.input_segments.all()


def restored(inputs, targets, first_sentinel):
    """The text again: every sentinel replaced by what the target says it stands for."""
    spans, current = {}, None
    for token in targets[:-1]:
        if token >= first_sentinel:
            current = spans[token] = []
        else:
            current.append(token)
    assert all(spans.values())
    text = []
    for token in inputs[:-1]:
        text += spans.pop(token) if token in spans else [token]
    assert not spans
    return text


@pytest.mark.parametrize("length", [2, 3, 7, 64])
@pytest.mark.parametrize("density", [0.01, 0.15, 0.6, 0.99])
def test_every_token_is_in_the_input_or_the_target_once(length, density):
    ids = Vocabulary(size=300, extra=200)
    objective = SpanCorruption(vocabulary=ids, density=density, span=2.0)
    rows = text_rows(4, length + 1, ids=ids)
    example = example_of(objective, rows)
    for row, inputs, targets in zip(rows, example.inputs, example.targets, strict=True):
        assert restored(inputs.tolist(), targets.tolist(), ids.mask + 1) == row[:-1].tolist()


def test_density_and_spans_are_those_that_were_asked_for():
    objective = SpanCorruption(vocabulary=Vocabulary(size=200, extra=100))
    assert objective.counts(512) == (77, 26)
    assert objective.lengths(512) == (512 - 77 + 26 + 1, 77 + 26 + 1)
    # A mean span of 3 and a density of 0.15, up to the rounding to whole tokens and spans.
    cut, spans = objective.counts(512)
    assert abs(cut / 512 - 0.15) < 1e-3
    assert abs(cut / spans - 3) < 0.05
    rows = np.tile(np.arange(513, dtype=np.int32) % 90 + 5, (64, 1))
    found = np.asarray(
        [np.diff(np.flatnonzero(np.append(row, 199) >= 101)[:-1]) - 1 for row in example_of(objective, rows).targets]
    )
    assert found.min() >= 1
    # Divisions into 26 parts are all as likely: a part is 1 with probability 25/76.
    lengths = Counter(found.ravel().tolist())
    assert lengths[1] / found.size == pytest.approx(25 / 76, abs=4 * np.sqrt(0.22 / found.size))


def test_every_division_is_as_likely_as_any_other():
    from experiments.objectives.spans import _divide

    keys = keys_of(4000)
    found = Counter(map(tuple, np.asarray(jax.jit(jax.vmap(lambda key: _divide(6, 3, key)))(keys)).tolist()))
    every = {parts for parts in itertools.product(range(1, 5), repeat=3) if sum(parts) == 6}
    assert set(found) == every
    # Chi-squared with 9 degrees of freedom is below 27.9 in 999 of 1000 samples.
    assert sum((count - 400) ** 2 / 400 for count in found.values()) < 27.9


def test_rows_stand_alone():
    assert_rows_stand_alone(MIXTURE, ROWS[:4], meshes={"data=4": 4})


MIXTURE = Mixture(denoisers=(SPANS, DENSE, END), shares=(0.5, 0.3, 0.2))


def test_a_mixture_is_its_denoisers_padded():
    rows = text_rows(300, 41)
    example = example_of(MIXTURE, rows)
    inputs, targets = MIXTURE.lengths(40)
    assert (inputs, targets) == (40 - 6 + 2 + 1, 20 + 10 + 1)
    assert example.inputs.shape == (300, inputs)
    drawn = Counter()
    for number, key in enumerate(keys_of(len(rows))):
        which, key = jax.random.split(key)
        draw = float(jax.random.uniform(which))
        denoiser = SPANS if draw < 0.5 else DENSE if draw < 0.8 else END
        drawn[denoiser] += 1
        if number >= 12:
            continue
        source, target = one_span_at_a_time(denoiser, rows[number], key)
        assert example.inputs[number].tolist() == source + [IDS.pad] * (inputs - len(source))
        assert example.input_segments[number].tolist() == [1] * len(source) + [0] * (inputs - len(source))
        assert example.targets[number].tolist() == target + [IDS.pad] * (targets - len(target))
        assert example.weights[number].tolist() == [1.0] * len(target) + [0.0] * (targets - len(target))
        np.testing.assert_array_equal(example.segments[number], example.weights[number])
    for denoiser, share in zip(MIXTURE.denoisers, MIXTURE.shares, strict=True):
        assert drawn[denoiser] == pytest.approx(300 * share, abs=4 * np.sqrt(300 * share * (1 - share)))


def test_padding_costs_nothing():
    model, keys = EncoderDecoder(IDS.size), keys_of(6)
    losses, weights = jax.jit(lambda model: MIXTURE.losses(model, ROWS, keys, dropout=None))(model)
    example = example_of(MIXTURE, ROWS)
    assert 0 < weights.sum() < weights.size
    assert not np.asarray(losses)[np.asarray(weights) == 0].any()
    segments = dict(input_segments=example.input_segments, target_segments=example.segments)
    logits = np.asarray(model.logits(model(example.inputs, example.tokens, key=None, **segments)))
    for place in zip(*np.nonzero(example.weights), strict=True):
        assert losses[place] == pytest.approx(nats(logits[place], example.targets[place]), rel=1e-5)


def test_ul2_is_the_seven_denoisers_of_its_paper():
    mixture = ul2(Vocabulary(size=1100, extra=100))
    assert [denoiser.counts(512) for denoiser in mixture.denoisers] == [
        (77, 26), (77, 10), (128, 1), (256, 85), (256, 32), (77, 1), (256, 4),
    ]  # fmt: skip
    assert [denoiser.mode for denoiser in mixture.denoisers] == [0, 0, 1, 2, 2, 2, 2]
    assert mixture.label == (
        "mixture-15%-spans-of-3-mode-0+15%-spans-of-8-mode-0+25%-end-mode-1+50%-spans-of-3-mode-2"
        "+50%-spans-of-8-mode-2+15%-spans-of-64-mode-2+50%-spans-of-64-mode-2"
    )
    with pytest.raises(ValueError, match="needs 89 reserved ids and the vocabulary has 60"):
        ul2(Vocabulary(size=1100, extra=60)).lengths(512)


def test_labels_tell_objectives_apart():
    labels = [objective.label for objective in (SPANS, DENSE, END, ONE_EACH, MIXTURE, replace(MIXTURE, shares=()))]
    assert len(set(labels)) == len(labels)
    assert labels[0] == "span-corruption-15%-spans-of-3"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(SPANS, density=1.0), "density 1 must be above 0 and below 1"),
        (lambda: replace(SPANS, span=0.5), "spans of 0.5 tokens must be of 1 or more"),
        (lambda: replace(SPANS, mode=29), "needs 31 reserved ids and the vocabulary has 30"),
        (lambda: SPANS.lengths(1), "rows of 1 tokens are too short, 2 are needed"),
        (lambda: SPANS.lengths(2000), "needs 101 reserved ids and the vocabulary has 30"),
        (lambda: Mixture(denoisers=()), "give one denoiser or more"),
        (lambda: replace(MIXTURE, shares=(0.5, 0.5)), "are not the shares of 3 denoisers, sum 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
