"""A search over layouts of which everything is known."""

import itertools
import math

import pytest

from parallel.estimate import Estimate, Memory
from parallel.search import meshes, search
from parallel.topology import Topology

POD = Topology.parse("v5p:4x4x4")


def said(seconds, gib, *, network=0.0, compiled=False):
    memory = Memory(parameters=gib * 2**30, optimizer=0, gradients=0, activations=0, temporaries=0)
    return Estimate(
        topology=POD, mesh={"fsdp": 64}, memory=memory, memory_needed=memory.total, memory_limit=POD.chip.memory_bytes,
        flops=1e15, compute_seconds=seconds, network_seconds=network, collectives=(),
        compile_seconds=1.0 if compiled else None, chip=POD.chip,
    )  # fmt: skip


LAYOUTS = {
    "fast but large": said(1.0, 200),
    "refused": said(1.5, 90),
    "best": said(2.0, 50),
    "slower": said(3.0, 20),
    "talks": said(1.0, 30, network=4.0),
    "slowest": said(5.0, 10),
}
COMPILED = {"refused": said(1.5, 120, compiled=True), "best": said(2.1, 55, compiled=True)}


def found(limit=95 * 2**30, most=2):
    asked = []

    def compile(layout):
        asked.append(layout)
        return COMPILED.get(layout, said(LAYOUTS[layout].compute_seconds, 20, compiled=True))

    return search(LAYOUTS, LAYOUTS.get, compile, limit=limit, most=most), asked


def test_the_fastest_that_the_compiler_says_fits_is_best():
    result, asked = found()
    assert asked == ["refused", "best", "slower"]  # what turned out too large does not count among the two
    assert result.best.layout == "best"
    assert result.best.compiled.memory_needed == 55 * 2**30
    assert [each.layout for each in result.candidates][:2] == ["best", "slower"]
    assert result.tried == len(LAYOUTS)


def test_each_loser_is_told_why():
    result, _ = found()
    why = {each.layout: result.reason(each) for each in result.candidates}
    assert why["fast but large"] == "memory: needs 200 GiB of 95"
    assert why["refused"] == "memory: needs 120 GiB of 95"
    assert why["best"] == "fastest that fits; memory-bound"
    assert why["slower"] == "compute: 3 s, best 2.1"
    assert why["talks"] == "network: 4 s, best 2"  # as arithmetic has it of both


def test_as_fast_is_told_with_what_it_needs():
    layouts = {"first": said(2.0, 50), "more": said(2.0, 55), "less": said(2.008, 40)}
    result = search(layouts, layouts.get, layouts.get, limit=None, most=0)
    why = {each.layout: result.reason(each) for each in result.candidates}
    assert why["more"] == "as fast, with 5 GiB more"
    assert why["less"] == "as fast, with 10 GiB less"


def test_nothing_fits_and_nothing_is_compiled():
    result, asked = found(limit=2**30)
    assert result.best is None
    assert asked == []


def test_without_a_limit_only_time_counts():
    result, asked = found(limit=None, most=1)
    assert asked == ["fast but large"]
    assert result.best.layout == "fast but large"


def test_of_layouts_that_differ_in_parts_the_first_that_fits_stands_for_all():
    layouts = [(parts, name) for name in ("a", "b") for parts in (1, 2, 4)]

    def predict(layout):
        return said(1.0 + 0.1 * layout[0] + (layout[1] == "b"), 160 / layout[0])

    result = search(layouts, predict, predict, limit=95 * 2**30, most=0, key=lambda each: each[1])
    assert [each.layout for each in result.candidates] == [(2, "a"), (2, "b")]


@pytest.mark.parametrize("chips", [1, 6, 64])
def test_meshes_are_all_products(chips):
    sizes = range(1, chips + 1)
    wanted = {(a, b, c) for a, b, c in itertools.product(sizes, repeat=3) if a * b * c == chips} if chips < 10 else None
    given = [tuple(each.values()) for each in meshes(chips, ("data", "fsdp", "tensor"))]
    assert len(given) == len(set(given))
    assert all(math.prod(each) == chips for each in given)
    assert wanted is None or set(given) == wanted
    assert len(given) == {1: 1, 6: 9, 64: 28}[chips]


def test_what_arithmetic_compares_badly_is_compared_by_the_compiler():
    """Arithmetic favours saving everything; the compiler says that computing again is faster."""
    predicted = {("save", 1): said(1.0, 80), ("save", 2): said(1.1, 80), ("again", 1): said(1.4, 20)}
    compiled = {("save", 1): said(3.0, 80, compiled=True), ("save", 2): said(2.9, 80, compiled=True)}
    compiled[("again", 1)] = said(1.5, 20, compiled=True)

    def best(**told):
        return search(predicted, predicted.get, compiled.get, limit=95 * 2**30, most=2, **told).best.layout

    assert best(kind=lambda layout: layout[0]) == ("again", 1)
    assert best() == ("save", 2)
