"""Experts spread over devices: the step of one device, its exchanges, and who holds what."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from axis_cases import assert_same, one_step

from experiments.objectives import Causal
from models import zoo
from models.execution import Dispatch
from models.rules import rules_for
from models.zoo.base import with_blocks
from parallel import dispatch
from parallel.mesh import MeshShape, device_mesh

SIZES = dict(width=16, depth=1, heads=2, vocab=64, length=16)
LIMITED = zoo.mixtral(**SIZES, experts=4, capacity=0.8)
UNLIMITED = zoo.mixtral(**SIZES, experts=4)
EIGHT = zoo.mixtral(**SIZES, experts=8)
ROWS = np.random.default_rng(0).integers(1, 64, (8, 17))


@functools.cache
def alone(architecture):
    return one_step(architecture, Causal(), ROWS)


def around(shape, architecture, way):
    return one_step(architecture, Causal(), ROWS, shape, dispatch=way)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "architecture", "way"),
    [
        ("fsdp=2,expert=4", LIMITED, Dispatch.BUFFERS),
        ("expert=4", UNLIMITED, Dispatch.BUFFERS),
        ("expert=4", LIMITED, Dispatch.RAGGED),
        ("data=2,expert=2", LIMITED, Dispatch.DENSE),
        ("expert=2,sequence=2", LIMITED, Dispatch.BUFFERS),
        ("expert=2,sequence=2", LIMITED, Dispatch.RAGGED),
        ("fsdp=2,expert=2,tensor=2", LIMITED, Dispatch.BUFFERS),
        ("fsdp=2,expert=2,tensor=2", UNLIMITED, Dispatch.RAGGED),
        ("expert=8", EIGHT, Dispatch.EXCHANGE),
        ("fsdp=2,expert=4", LIMITED, Dispatch.EXCHANGE),
        ("expert=2,tensor=2", EIGHT, Dispatch.EXCHANGE),
        ("expert=2,sequence=2", UNLIMITED, Dispatch.EXCHANGE),
    ],
)
def test_experts_on_several_devices_take_the_step_of_one(shape, architecture, way):
    """And exchange what was meant: in each layer, to the experts and back, in both directions."""
    step = around(shape, architecture, way)
    assert_same(step, alone(architecture))
    sent = {kind: count for (kind, axes), count in step.collectives.items() if axes == ("expert",)}
    if way is Dispatch.BUFFERS:
        assert sent["all-to-all"] == 2 * 2 * architecture.depth
    else:
        assert sent["all-gather"] >= architecture.depth
        assert "all-to-all" not in sent
    # Parameters rest in equal shares on all devices that do not copy each other.
    sizes = MeshShape.parse(shape)
    assert step.share == pytest.approx(1 / (sizes.devices / sizes.data), rel=0.02)


@pytest.mark.slow
def test_runs_are_computed_in_as_many_blocks_as_they_are_long(monkeypatch):
    """As where the experts of one device are sent far more than those of others."""
    monkeypatch.setattr(dispatch, "_block", lambda sent: 24)
    assert_same(around("expert=2,tensor=2", UNLIMITED, Dispatch.EXCHANGE), alone(UNLIMITED))


@pytest.mark.slow
def test_seats_matter():
    """Else agreeing with one device would say nothing about them."""
    assert abs(alone(LIMITED).loss - alone(UNLIMITED).loss) > 1e-4


def test_mistakes():
    dense = zoo.llama(**SIZES)
    three = replace(LIMITED, decoder=with_blocks(LIMITED.decoder, lambda b: replace(
        b, feedforward=replace(b.feedforward, count=3)
    )))  # fmt: skip
    mesh = device_mesh("expert=4", jax.devices()[:4])
    for architecture, said in ((dense, "llama has no experts"), (three, "3 experts cannot be shared equally")):
        with pytest.raises(ValueError, match=said):
            rules_for(architecture, mesh)
