"""AdamW against optax's, schedules against hand-computed values and optax's, decay by role."""

import re
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from experiments.optimizer import AdamW, Schedule, Shape, decayed
from models import zoo
from models.execution import Execution
from models.transformer import Decoder

# Biases of stacked layers are matrices here, so a rule by number of axes would decay them.
MODEL = Decoder(zoo.gpt2(width=16, depth=2, heads=2, vocab=32, length=16), execution=Execution())


def names():
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(MODEL)]


def filled(seed, scale=1.0):
    """The model with random numbers for parameters, or for gradients."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape).astype(np.float32), MODEL)


def test_biases_and_scales_do_not_decay_and_all_else_does():
    decay = dict(zip(names(), jax.tree.leaves(decayed(MODEL)), strict=True))
    assert decay == {name: re.search("bias|scale|shift", name) is None for name in names()}
    assert set(decay.values()) == {True, False}
    stacked = [leaf.ndim for name, leaf in zip(names(), jax.tree.leaves(MODEL), strict=True) if not decay[name]]
    assert max(stacked) > 1


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adamw_is_that_of_optax(clip):
    config = AdamW(b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, clip=clip)
    ours = config.transform()
    mask = jax.tree.unflatten(
        jax.tree.structure(MODEL), [re.search("bias|scale|shift", name) is None for name in names()]
    )
    theirs = optax.adamw(2e-3, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, mask=mask)
    theirs = theirs if clip is None else optax.chain(optax.clip_by_global_norm(clip), theirs)

    @jax.jit
    def step(one, one_state, other, other_state, gradient):
        updates, one_state = ours.update(gradient, one_state, one)
        one = jax.tree.map(lambda leaf, update: leaf - 2e-3 * update, one, updates)
        updates, other_state = theirs.update(gradient, other_state, other)
        return one, one_state, optax.apply_updates(other, updates), other_state

    one = other = filled(0)
    one_state, other_state = ours.init(one), theirs.init(other)
    for seed in range(1, 5):
        one, one_state, other, other_state = step(one, one_state, other, other_state, filled(seed, scale=seed))
    for name, left, right, before in zip(
        names(), jax.tree.leaves(one), jax.tree.leaves(other), jax.tree.leaves(filled(0)), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7, err_msg=name)
        assert np.abs(np.asarray(left) - before).max() > 1e-3


def test_the_first_update_by_hand():
    """Adam's first update is the sign of the gradient; decay is a share of the parameter, apart from it."""
    parameters, gradient = filled(0), filled(1)
    transform = AdamW(weight_decay=0.1, eps=0.0, clip=None).transform()
    updates, _ = jax.jit(transform.update)(gradient, transform.init(parameters), parameters)
    for name, update, leaf, slope in zip(
        names(), jax.tree.leaves(updates), jax.tree.leaves(parameters), jax.tree.leaves(gradient), strict=True
    ):
        decay = 0.0 if re.search("bias|scale|shift", name) else 0.1
        np.testing.assert_allclose(update, np.sign(slope) + decay * leaf, rtol=1e-5, atol=1e-5, err_msg=name)


def test_gradients_are_clipped_by_their_global_norm():
    """Adam forgets the size of a constant gradient, so the mean of gradients that it keeps is looked at."""
    gradient = filled(1)
    norm = float(np.sqrt(sum(np.square(slope).sum() for slope in jax.tree.leaves(gradient))))
    assert norm > 1.0
    for clip, factor in ((1.0, 1.0 / norm), (2 * norm, 1.0), (None, 1.0)):
        transform = AdamW(b1=0.9, clip=clip).transform()
        _, (_, adam, _) = jax.jit(transform.update)(gradient, jax.jit(transform.init)(filled(0)), filled(0))
        for mean, slope in zip(jax.tree.leaves(adam.mu), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(mean, 0.1 * factor * slope, rtol=1e-5)


def rates(schedule, steps=100):
    return schedule.rates(0, steps, steps=steps)


def test_warmup_rises_evenly_from_above_zero_to_the_peak():
    for shape in Shape:
        found = rates(Schedule(peak=0.2, shape=shape, warmup=0.1))
        np.testing.assert_allclose(found[:10], 0.2 * np.arange(1, 11) / 10, rtol=1e-6)
        assert found.max() == np.float32(0.2)


def test_schedules_by_hand():
    """At steps of a run of 100, counted from 0; warmup is 10 of them, and WSD falls over the last 20."""
    settings = dict(peak=1.0, warmup=0.1, final=0.1, decay=0.2)
    expected = {
        Shape.COSINE: {10: 1.0, 55: 0.55, 25: 0.1 + 0.45 * (1 + np.cos(np.pi / 6))},
        Shape.LINEAR: {10: 1.0, 55: 0.55, 40: 0.7, 99: 1 - 0.9 * 89 / 90},
        Shape.INVERSE_SQRT: {9: 1.0, 39: 0.5, 89: 1 / 3},
        Shape.WSD: {10: 1.0, 50: 1.0, 79: 1.0, 80: 0.955, 89: 0.55, 99: 0.1},
        Shape.CONSTANT: {10: 1.0, 99: 1.0},
    }
    assert expected.keys() == set(Shape)
    for shape, values in expected.items():
        found = rates(Schedule(shape=shape, **settings))
        assert {step: found[step] for step in values} == pytest.approx(values, rel=1e-6), shape


def test_cosine_and_linear_are_those_of_optax_after_the_warmup():
    """Before, ours is a step ahead of optax's, whose first rate is zero: a step that learns nothing."""
    for shape, theirs in {
        Shape.COSINE: optax.warmup_cosine_decay_schedule(0.0, 3e-3, 10, 100, end_value=3e-4),
        Shape.LINEAR: optax.join_schedules(
            [optax.linear_schedule(0.0, 3e-3, 10), optax.linear_schedule(3e-3, 3e-4, 90)], [10]
        ),
    }.items():
        found = rates(Schedule(peak=3e-3, shape=shape, warmup=0.1, final=0.1))
        np.testing.assert_allclose(found[10:], [theirs(step) for step in range(10, 100)], rtol=1e-5)
        np.testing.assert_allclose(found[:10], [theirs(step + 1) for step in range(10)], rtol=1e-5)


@pytest.mark.parametrize("shape", Shape)
def test_a_schedule_is_a_function_of_the_step(shape):
    schedule = Schedule(shape=shape)
    whole = schedule.rates(0, 350, steps=350)
    pieces = [schedule.rates(first, min(9, 350 - first), steps=350) for first in range(0, 350, 9)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    assert whole.dtype == np.float32
    assert np.all(whole > 0)
    assert np.all(np.isfinite(whole))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_have_rates(steps):
    for shape in Shape:
        found = Schedule(shape=shape, warmup=0.0).rates(0, steps, steps=steps)
        assert np.all((found > 0) & (found <= np.float32(1e-3)))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="schedule: peak is 0 and must be positive"):
        Schedule(peak=0)
    with pytest.raises(ValueError, match="schedule: peak is nan"):
        Schedule(peak=float("nan"))
    for name in ("warmup", "decay", "final"):
        with pytest.raises(ValueError, match=rf"schedule: {name} is 1.5; it is a share between 0 and 1"):
            replace(Schedule(), **{name: 1.5})
