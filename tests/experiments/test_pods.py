"""Steps compiled by the TPU's own compiler for slices that are not here; needs the extra `tpu`, minutes in all."""

from dataclasses import replace

import pytest

from experiments.cli import main
from experiments.commands.compile import Ids
from experiments.data.packed import DataConfig
from experiments.layouts import Layouts
from experiments.objectives import Sides
from experiments.objectives.named import USUAL, named
from experiments.optimizer import Schedule
from experiments.placement import Placement
from experiments.runs import Run
from models import zoo
from models.execution import Dispatch, Precision, Remat
from parallel.topology import Topology

pytestmark = pytest.mark.slow


def run_of(architecture, *, length, batch):
    return Run(
        architecture=architecture, data=DataConfig(length=length), rows="", schedule=Schedule(), batch=batch, steps=1,
        objective=named(USUAL[Sides.of(architecture)], Ids(vocab=architecture.vocab)), precision=Precision.BFLOAT16,
    )  # fmt: skip


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:4x4x4", "v6e:16x16"])
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_slice_needs_what_arithmetic_says(family, topology):
    pytest.importorskip("libtpu")
    topology = Topology.parse(topology)
    architecture = zoo.make(family, width=512, depth=4, heads=4, vocab=8192, length=512)
    placement = Placement(mesh=f"fsdp=16,data={topology.chips // 16}", remat=Remat.FULL)
    layouts = Layouts(run_of(architecture, length=512, batch=16 * topology.chips), topology, placement)
    told, compiled = layouts.predict(placement), layouts.compile(placement)
    assert compiled.fits
    assert 0 < compiled.mfu < 1
    assert compiled.memory.parameters == pytest.approx(layouts.run.cost.params * 4 / 16, rel=0.02)
    assert told.memory_needed == pytest.approx(compiled.memory_needed, rel=0.15)


def test_tokens_go_to_experts_alone_by_a_ragged_exchange():
    """There and back, in the forward pass, its repetition (there only) and the backward pass; in each of two layers."""
    pytest.importorskip("libtpu")
    topology = Topology.parse("v5e:4x4")
    architecture = zoo.mixtral(width=512, depth=2, heads=4, vocab=1024, length=512)
    placement = Placement(mesh="fsdp=4,expert=4", remat=Remat.FULL, dispatch=Dispatch.EXCHANGE)
    compiled = Layouts(run_of(architecture, length=512, batch=16), topology, placement).compile(placement)
    assert compiled.fits
    assert 0 < compiled.mfu < 1  # products of runs, which are fused kernels, counted
    (ragged,) = (each for each in compiled.collectives if each.kind == "ragged-all-to-all")
    assert (ragged.axes, ragged.count) == (("expert",), 2 * 5)
    assert ragged.bytes == 10 * 2 * (512 * 2 * 512) * 3 / 4  # each of a device's 512 tokens to two devices


def test_too_much_is_refused_with_what_would_fit(capsys):
    pytest.importorskip("libtpu")
    size = ["--model.family", "llama", "--model.width", "1024", "--model.depth", "4", "--model.heads", "8"]
    rows = ["--vocab", "32000", "--length", "1024", "--batch", "1024"]
    assert main(["compile", "--topology", "v5e:4x4", *size, *rows, "--remat", "none"]) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said
    assert "by arithmetic these fit: --mesh" in said


@pytest.mark.parametrize(("name", "batch"), [("llama-7b", 256), ("llama-2-70b", 256)])
@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v5e:16x16"])
def test_a_search_is_no_worse_than_layouts_set_by_hand(name, batch, topology, record_property):
    """Compiles four steps, of one to three minutes each; `--junitxml F -o junit_family=xunit1` keeps what is said."""
    pytest.importorskip("libtpu")
    topology = Topology.parse(topology)
    architecture = replace(zoo.get(name), length=4096)
    layouts = Layouts(run_of(architecture, length=4096, batch=batch), topology, Placement(remat=Remat.FULL))
    best = layouts.search(compiled=2).best
    by_hand = (f"fsdp={topology.chips}", f"fsdp={topology.chips // 4},tensor=4")
    found = {mesh: layouts.compile(replace(layouts.layout, mesh=mesh)) for mesh in by_hand}
    searched = f"{best.layout.mesh} {best.layout.remat.value} {best.layout.accumulate}"
    for layout, said in (found | {searched: best.compiled}).items():
        record_property(layout, f"{said.step_seconds} s, {said.memory_needed / 2**30:.1f} GiB, {said.verdict}")
    assert best.compiled.fits
    assert all(best.compiled.step_seconds <= each.step_seconds for each in found.values() if each.fits)
