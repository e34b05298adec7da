"""Arithmetic on a step, against what can be counted by hand."""

from dataclasses import replace

import pytest

from parallel.analytic import COPIES, Exchange, Split, Weight, Work, predict
from parallel.pipeline import Pipeline
from parallel.topology import Topology

POD, FLAT, ROW = Topology.parse("v5p:4x4x4"), Topology.parse("v5e:4x4"), ("data", "fsdp")
KERNEL = Weight(name="kernel", shape=(8, 1024, 4096), resting=((), ("fsdp",), ("tensor",)), used=("tensor",), layers=8)
WORK = Work(
    weights=(KERNEL,), moments=2.0, saved=(Split(1e6, ROW),), kept=(), repeat=(Split(1e5, ROW),), blocks=1,
    scores=(), stacks=1, body=(Split(8e5, ROW),), logits=Split(4e6, (*ROW, "tensor")), readers=ROW,
    exchanges=(Exchange(kind="all-reduce", axes=("tensor",), count=10, array=Split(2e6, ROW)),),
    flops=3e12, executed=4e12, again=1, stream=Split(1e5, ROW),
)  # fmt: skip


def told(topology=POD, work=WORK, *, rows=64, parts=1, **mesh):
    sizes = {"pipeline": 1, "data": 1, "fsdp": 1, "tensor": 1} | mesh
    return predict(work, topology=topology, mesh=sizes, rows=rows, parts=parts)


def by_kind(estimate):
    return {(each.kind, each.axes): each for each in estimate.collectives}


def test_what_rests_is_split_over_both_axes_and_the_rest_follows():
    held = told(fsdp=16, tensor=4).memory
    assert held.parameters == 4 * KERNEL.size / 64
    assert held.optimizer == 2 * held.parameters
    assert held.gradients == held.parameters
    assert told(data=64).memory.parameters == 4 * KERNEL.size


def test_parts_hold_fewer_rows_and_two_gradients():
    whole, parted = told(fsdp=16, data=4, rows=256), told(fsdp=16, data=4, rows=256, parts=4)
    assert whole.memory.activations == 4 * 1e6
    assert parted.memory.activations == 1e6
    assert parted.memory.gradients == 2 * whole.memory.gradients


def test_a_layer_is_gathered_forward_and_again_and_its_gradient_scattered():
    found = by_kind(told(FLAT, fsdp=16))
    whole = 2 * KERNEL.size * 15 / 16  # in 16 bits, but for the share that is here
    assert found["all-gather", ("fsdp",)].bytes == pytest.approx(2 * whole)
    assert found["all-gather", ("fsdp",)].count == 2 * 8
    assert found["reduce-scatter", ("fsdp",)].bytes == pytest.approx(whole)
    assert len(found) == 2
    saved = by_kind(told(FLAT, replace(WORK, again=0), fsdp=16))
    assert saved["all-gather", ("fsdp",)].bytes == pytest.approx(whole)
    parted = by_kind(told(FLAT, rows=64, parts=4, fsdp=16))
    assert parted["all-gather", ("fsdp",)].bytes == pytest.approx(4 * 2 * whole)


def test_over_many_shards_or_with_copies_gradients_are_summed_whole():
    found = by_kind(told(fsdp=64))
    assert set(found) == {("all-gather", ("fsdp",)), ("all-reduce", ("fsdp",))}
    assert found["all-reduce", ("fsdp",)].bytes == pytest.approx(2 * 63 / 64 * 2 * KERNEL.size)
    assert ("reduce-scatter", ("fsdp",)) in by_kind(
        told(Topology.parse("h100:8x8"), fsdp=64)
    )  # not by a TPU's compiler
    copies = by_kind(told(FLAT, data=4, fsdp=4))
    assert set(copies) == {("all-gather", ("fsdp",)), ("all-reduce", ("data", "fsdp"))}
    assert ("reduce-scatter", ("fsdp",)) in by_kind(told(fsdp=16, tensor=4))
    assert set(by_kind(told(data=64))) == {("all-reduce", ("data",))}


def test_gradients_of_experts_are_not_summed_over_their_shards():
    experts = Weight(name="experts", shape=(8, 4, 64, 64), resting=((), ("expert",), ("fsdp",), ()), used=("expert",),
                     layers=8)  # fmt: skip
    rest = replace(KERNEL, resting=((), ("fsdp", "expert"), ()), used=())
    found = by_kind(
        told(FLAT, replace(WORK, weights=(experts, rest), readers=(*ROW, "expert"), exchanges=()), fsdp=4, expert=4)
    )
    assert found["reduce-scatter", ("fsdp",)].bytes == pytest.approx(3 / 4 * 2 * experts.size / 4)
    assert found["reduce-scatter", ("fsdp", "expert")].bytes == pytest.approx(15 / 16 * 2 * rest.size)
    assert len(found) == 4


def test_tensor_shards_sum_activations():
    shards = by_kind(told(fsdp=16, tensor=4))
    assert shards["all-reduce", ("tensor",)].bytes == pytest.approx(10 * 2 * 3 / 4 * 2e6 * 64 / 16)
    assert shards["all-gather", ("fsdp",)].bytes == pytest.approx(2 * 15 / 16 * 2 * KERNEL.size / 4)


def test_time_is_no_less_than_products_at_the_peak_and_bytes_over_the_links():
    found = told(fsdp=16, tensor=4)
    assert found.compute_seconds > 4e12 * 64 / (64 * POD.chip.bf16_flops)
    sent = by_kind(found)
    along = POD.chip.link_bandwidth / 3  # tensor shards are neighbours in one of three dimensions
    least = sent["all-reduce", ("tensor",)].bytes / along + sent["all-gather", ("fsdp",)].bytes / (2 * along)
    assert found.network_seconds > least
    assert found.mfu == pytest.approx(3e12 * 64 / (64 * POD.chip.bf16_flops) / found.step_seconds)


def test_nearer_memory_takes_of_a_block_and_not_of_logits():
    def held(**changes):
        return told(work=replace(small, **changes), rows=6400, fsdp=64).memory.temporaries

    small = replace(WORK, weights=(), logits=Split(0.0), repeat=(Split(1e6, ROW),), scores=(Split(2e6, ROW),))
    near, scores = POD.chip.vector_memory_bytes / 2, 2 * 2e6 * 100
    assert held() == 2 * 1e6 * 100 + scores - near  # what is made, and its gradients
    assert held(weights=(KERNEL,)) == pytest.approx(held() + 2 * KERNEL.size / 8)
    assert held(blocks=2) == 1.5 * 1e6 * 100 + scores - near  # gradients are of one block at a time
    assert held(logits=WORK.logits, repeat=(), scores=()) == 4e6 * 100
    # Where a loop keeps several stacks both count, else the larger.
    several, one = (held(logits=WORK.logits, stacks=stacks) for stacks in (2, 1))
    assert (several, one) == (held() + 4e6 * 100, max(held(), 4e6 * 100))


def test_what_loops_keep_in_stacks_is_written_and_read_twice_more():
    stacked = told(work=replace(WORK, kept=(Split(1e6),), copies=2), fsdp=64, parts=2)
    more = stacked.compute_seconds - told(work=replace(WORK, kept=(Split(1e6),)), fsdp=64, parts=2).compute_seconds
    assert more == pytest.approx(2 * 2 * (1e6 + 2 * 1e6) / (COPIES * POD.chip.memory_bandwidth))


def test_stages_are_idle_while_they_fill_and_keep_what_is_in_flight():
    split = ("pipeline",)
    layers = replace(KERNEL, resting=(split, ("fsdp",), ()), used=split)
    stage = replace(WORK, weights=(layers,), saved=(Split(1e6, (*ROW, *split)),), exchanges=(), logits=Split(0.0))
    one, several = (
        told(FLAT, replace(stage, pipeline=Pipeline(microbatches=4, rounds=rounds)), data=4, pipeline=4)
        for rounds in (1, 2)
    )
    # Seven ticks of a stage for four microbatches; in two rounds eleven, half as long. Sixteen rows are a device's.
    assert one.memory.activations == pytest.approx(16 * (7 / 4 * 1e6 / 4 + 7 * 1e5 / 4))
    pieces = 11 * 4 * KERNEL.size / 4 / 2
    assert several.memory.activations == pytest.approx(16 * (11 / 8 * 1e6 / 4 + 11 * 1e5 / 4) + pieces)
    whole = told(FLAT, replace(WORK, exchanges=(), logits=Split(0.0)), data=16)
    assert whole.compute_seconds < several.compute_seconds < one.compute_seconds < 7 / 4 * whole.compute_seconds
    sent = by_kind(one)
    assert sent["collective-permute", split].count == 2 * 7
    assert sent["collective-permute", split].bytes == pytest.approx(2 * 7 * 1e5 * 16 / 4)
    assert sent["all-reduce", split].bytes == pytest.approx(3 * 2 * 3 / 4 * 1e5 * 16)
    # Gradients of a stage's two layers are summed over its copies at every tick.
    assert sent["all-reduce", ("data",)].count == 7 * 2
    assert sent["all-reduce", ("data",)].bytes == pytest.approx(7 * 2 * 3 / 4 * 2 * KERNEL.size / 4)


def test_a_mesh_that_does_not_divide_a_parameter_is_told():
    assert "kernel has an axis of 1024, which 3 shards do not divide" in KERNEL.misfit({"fsdp": 3})
    assert KERNEL.misfit({"fsdp": 4, "tensor": 8}) == ""
