"""A step in numbers, against the same step compiled for this process' eight devices; searches; prices."""

import json
import re
from dataclasses import replace

import pytest

from experiments.cli import main
from experiments.commands.compile import Ids, suggestions
from experiments.data.packed import DataConfig
from experiments.layouts import Layouts
from experiments.objectives import Sides
from experiments.objectives.named import USUAL, named
from experiments.optimizer import Schedule
from experiments.placement import Placement
from experiments.pricing import check_fit, price_table, prices
from experiments.runs import Run
from models import zoo
from models.execution import Dispatch, Precision, Remat
from parallel.context import Context
from parallel.topology import Topology

HERE, POD = Topology.parse("cpu:8"), Topology.parse("v5e:4x4")
RUN = Run(
    architecture=zoo.llama(width=64, depth=2, heads=4, vocab=128, length=32), data=DataConfig(length=32), rows="",
    schedule=Schedule(), batch=16, steps=100,
)  # fmt: skip
LARGE = replace(RUN, architecture=zoo.llama(width=8192, depth=80, heads=64, vocab=32_000, length=2048),
                data=DataConfig(length=2048))  # fmt: skip


def test_more_is_saved_the_less_is_computed_again():
    layouts = Layouts(RUN, HERE, Placement())
    full, none = (layouts.predict(Placement(mesh="fsdp=8", remat=remat)) for remat in (Remat.FULL, Remat.NONE))
    assert full.memory.activations < none.memory.activations
    assert full.compute_seconds > none.compute_seconds
    parted = layouts.predict(Placement(mesh="fsdp=8", remat=Remat.FULL, accumulate=2))
    half = Layouts(replace(RUN, batch=RUN.batch // 2), HERE, Placement()).predict(
        Placement(mesh="fsdp=8", remat=Remat.FULL)
    )
    assert parted.memory.activations == half.memory.activations
    with pytest.raises(ValueError, match="3 shards do not divide"):
        Layouts(RUN, Topology.parse("cpu:3"), Placement()).predict(Placement(mesh="fsdp=3"))


def test_a_search_ends_in_a_layout_that_fits_and_says_why_others_lose(capsys, monkeypatch):
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")  # the tests' eight devices are these
    size = ["--model.width", "32", "--model.depth", "1", "--model.heads", "2", "--vocab", "128", "--length", "32"]
    search = ["compile", "--topology", "cpu:8", *size, "--batch", "8", "--search", "--compiled", "1", "--json"]
    assert main(search) == 0
    said = json.loads(capsys.readouterr().out)
    first, *others = said["candidates"]
    assert first["reason"].startswith("fastest that fits")
    assert said["best"].startswith(f"--mesh {first['mesh']}")
    seconds = [each["predicted"]["step_seconds_estimate"] for each in (first, *others)]
    assert min(seconds) == seconds[0]
    assert "compute" in {each["reason"].split(":")[0] for each in others}  # one that computes again, say
    told, compiled = (first[by]["hbm_bytes_per_chip"] for by in ("predicted", "compiled"))
    assert told["parameters"] == compiled["parameters"]
    assert told["optimizer"] == pytest.approx(compiled["optimizer"], rel=0.01)
    assert first["predicted"]["flops_per_step"] == first["compiled"]["flops_per_step"]


def test_of_gpus_elsewhere_arithmetic_speaks(capsys):
    size = ["--model.width", "128", "--model.depth", "2", "--model.heads", "2", "--vocab", "512", "--length", "256"]
    assert main(["compile", "--topology", "h100:2x8", *size, "--mesh", "fsdp=16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["compile_seconds"] is None
    assert said["fits"] is True
    assert said["step_seconds_estimate"] > 0
    assert {each["kind"] for each in said["collectives"]} == {"all-gather", "reduce-scatter"}
    assert main(["compile", "--topology", "h100:2x8", *size, "--search"]) == 0
    assert "compiler" not in capsys.readouterr().out


def test_prices_of_a_sweep():
    short, long, large = prices([RUN, replace(RUN, steps=200), LARGE], POD, Placement())
    assert (short.fits, long.fits, large.fits) == (True, True, False)
    assert long.chip_hours == pytest.approx(2 * short.chip_hours)
    assert short.chip_hours == pytest.approx(16 * 100 * short.candidate.predicted.step_seconds / 3600)
    assert price_table([short, long, large]).row_count == 3
    check_fit([short, long])
    with pytest.raises(
        ValueError, match=r"1 of 3 runs do not fit v5e:4x4: 65.3B parameters need [\d.]+ GiB a chip of 16"
    ):
        check_fit([short, long, large])


def test_what_cannot_be_is_told_with_what_could():
    chips = int(
        re.search(r"take about ([\d,]+) chips", suggestions(Layouts(LARGE, POD, Placement())))[1].replace(",", "")
    )
    assert 64 <= chips <= 128  # 70 GiB a chip of 16, on 16 of them
    assert "these fit: --mesh" in suggestions(Layouts(RUN, POD, Placement()))
    with pytest.raises(ValueError, match="no mesh of 16 chips suits 17 rows"):
        Layouts(replace(RUN, batch=17), POD, Placement(remat=Remat.FULL)).search(compiled=0)


LLAMA_7B = zoo.llama(width=4096, depth=32, heads=32, vocab=32_000, length=4096)
GPT3 = zoo.make("gpt3", width=4096, depth=32, heads=32, vocab=50_304)
SMALL = {
    family: zoo.make(family, width=512, depth=4, heads=4, vocab=8192, length=512) for family in ("llama", "bert", "t5")
}


@pytest.mark.parametrize(
    ("architecture", "length", "batch", "topology", "remat", "parts", "gib"),
    [
        (LLAMA_7B, 4096, 256, "v5p:4x4x4", Remat.FULL, 1, 8.34),
        (LLAMA_7B, 4096, 256, "v5p:4x4x4", Remat.DOTS, 1, 48.5),
        (zoo.get("llama-2-70b"), 4096, 256, "v5p:4x4x4", Remat.DOTS, 4, 77.5),
        (zoo.get("llama-2-70b"), 4096, 256, "v5e:16x16", Remat.FULL, 1, 13.4),
        (GPT3, 2048, 512, "v5p:4x4x4", Remat.FULL, 1, 7.84),  # two blocks a repeat
        (SMALL["llama"], 512, 256, "v5e:4x4", Remat.FULL, 1, 0.324),
        (SMALL["bert"], 512, 256, "v5e:4x4", Remat.FULL, 1, 0.189),
        (SMALL["t5"], 512, 256, "v5e:4x4", Remat.FULL, 1, 0.208),
    ],
)
def test_memory_is_what_the_tpu_compiler_said(architecture, length, batch, topology, remat, parts, gib):
    """Recorded; `test_pods.py` asks it again."""
    run = replace(
        RUN, architecture=architecture, data=DataConfig(length=length), batch=batch,
        objective=named(USUAL[Sides.of(architecture)], Ids(vocab=architecture.vocab)),
        precision=Precision.BFLOAT16,
    )  # fmt: skip
    topology = Topology.parse(topology)
    placement = Placement(mesh=f"fsdp={topology.chips}", remat=remat, accumulate=parts)
    told = Layouts(run, topology, placement).predict(placement)
    assert told.memory_needed == pytest.approx(gib * 2**30, rel=0.15)


def test_time_is_what_the_tpu_compiler_said():
    """Recorded: saving the products is faster than computing all again; and than saving all, which loops copy."""
    recorded = {Remat.DOTS: 2.43, Remat.FULL: 2.58}
    run = replace(
        RUN, architecture=LLAMA_7B, batch=256, data=DataConfig(length=4096), precision=Precision.BFLOAT16
    )  # fmt: skip
    layouts = Layouts(run, Topology.parse("v5p:4x4x4"), Placement())
    told = {remat: layouts.predict(Placement(mesh="fsdp=64", remat=remat)).compute_seconds for remat in recorded}
    assert told == pytest.approx(recorded, rel=0.15)
    everything = layouts.predict(Placement(mesh="fsdp=64", remat=Remat.NONE, accumulate=2)).compute_seconds
    assert told[Remat.DOTS] < told[Remat.FULL] < everything


def test_rows_fewer_than_chips_are_split():
    few = Layouts(replace(RUN, batch=2), HERE, Placement(remat=Remat.FULL))
    tried = {each.mesh for each in few.all([Remat.FULL])}
    assert "sequence" in "".join(tried)
    split = few.predict(replace(few.layout, mesh="fsdp=2,sequence=4"))
    (exchanged,) = (each for each in split.collectives if each.kind == "all-to-all")
    heads = 2 * 2 / 8 * 32 * 64  # of a chip, in float32 as all else: queries, keys, values, and what comes of them
    assert exchanged.axes == ("sequence",)
    assert exchanged.count == 2 * 4 * 3
    assert exchanged.bytes == pytest.approx(exchanged.count * 3 / 4 * 2 * heads)
    assert not any("sequence" in each.mesh for each in Layouts(RUN, HERE, few.layout).all([Remat.FULL]))
    with pytest.raises(ValueError, match="for the compiler to say"):
        few.predict(replace(few.layout, mesh="fsdp=2,sequence=4", context=Context.RING))


@pytest.mark.parametrize(
    ("mesh", "dispatch", "kind", "mib"),
    [
        ("fsdp=4,expert=4", Dispatch.RAGGED, "all-gather", 288),
        ("fsdp=4,expert=4", Dispatch.RAGGED, "reduce-scatter", 192),
        ("fsdp=4,expert=4", Dispatch.BUFFERS, "all-to-all", 1152),
        ("data=2,expert=8", Dispatch.BUFFERS, "all-to-all", 1344),
    ],
)
def test_experts_exchange_what_the_tpu_compiler_said(mesh, dispatch, kind, mib):
    """Recorded, but for what says which token goes where."""
    routed = zoo.mixtral(width=512, depth=4, heads=8, vocab=8192, length=512)
    run = replace(RUN, architecture=routed, data=DataConfig(length=512), batch=256, precision=Precision.BFLOAT16)
    found = Layouts(run, POD, Placement()).predict(Placement(mesh=mesh, remat=Remat.FULL, dispatch=dispatch))
    sent = {each.kind: each.bytes for each in found.collectives if each.axes == ("expert",)}
    assert sent[kind] == pytest.approx(mib * 2**20, rel=0.001)
    if mesh == "fsdp=4,expert=4":  # experts' weights, twice
        (gathered,) = (each for each in found.collectives if (each.kind, each.axes) == ("all-gather", ("fsdp",)))
        assert gathered.bytes == pytest.approx(49.5 * 2**20, rel=0.001)


@pytest.mark.parametrize(
    ("mesh", "gib", "recorded"),
    [
        ("pipeline=4,data=4", 0.532, {"collective-permute": 76, "all-reduce": 145}),
        ("pipeline=2,fsdp=8", 0.395, {"collective-permute": 36, "all-reduce": 48}),
    ],
)
def test_stages_exchange_and_need_what_the_tpu_compiler_said(mesh, gib, recorded):
    gpt = zoo.make("gpt2", width=512, depth=8, heads=8, vocab=8192, length=512)
    run = replace(RUN, architecture=gpt, data=DataConfig(length=512), batch=256, precision=Precision.BFLOAT16)
    layouts = Layouts(run, POD, Placement())
    told = layouts.predict(Placement(mesh=mesh, remat=Remat.FULL))
    sent = {each.kind: each.bytes / 2**20 for each in told.collectives if each.axes == ("pipeline",)}
    assert sent.pop("all-gather", 0) < 8  # 6.4 at most: of parameters outside of layers
    assert sent == pytest.approx(recorded, rel=0.02)
    assert told.memory_needed == pytest.approx(gib * 2**30, rel=0.15)
    whole = layouts.predict(Placement(mesh="fsdp=16", remat=Remat.FULL))
    assert whole.compute_seconds < told.compute_seconds
    with pytest.raises(ValueError, match="32 rows a device cannot be cut into 24"):
        layouts.predict(Placement(mesh="pipeline=2,fsdp=8", microbatches=24))


@pytest.mark.slow
def test_stages_are_tried_where_rows_are_few_or_nodes_far_apart():
    def tried(run, topology):
        return {(each.mesh, each.rounds) for each in Layouts(run, topology, Placement()).all([Remat.FULL])}

    deep = replace(RUN, architecture=zoo.llama(width=64, depth=4, heads=4, vocab=128, length=32))
    assert {("pipeline=2,data=4", 1), ("pipeline=2,data=4", 2)} <= tried(
        replace(deep, batch=8), Topology.parse("h100:2x4")
    )
    assert not any("pipeline" in mesh for mesh, _ in tried(deep, Topology.parse("h100:8")))
    few = tried(replace(deep, batch=4), HERE)
    assert {("pipeline=2,data=4", 1), ("pipeline=4,data=2", 1)} <= few
    assert ("pipeline=4,data=2", 2) not in few  # four layers are no eight pieces


def test_experts_are_spread_where_there_are_some():
    routed = replace(RUN, architecture=zoo.mixtral(width=64, depth=2, heads=4, vocab=128, length=32, experts=4))
    tried = {each.mesh for each in Layouts(routed, HERE, Placement()).all([Remat.FULL])}
    assert {"expert=4,tensor=2", "fsdp=2,expert=4", "data=2,fsdp=2,expert=2"} <= tried
    assert not any("expert=8" in mesh for mesh in tried)
    assert not any("expert" in each.mesh for each in Layouts(RUN, HERE, Placement()).all([Remat.FULL]))


SWEEP = ["sweep", "--budgets", "1e10", "--sizes", "1", "--tokens-per-param", "20", "60", "--batch", "4"]
DATA = ["--data.length", "64", "--data.tokenizer", "bytes", "--evaluation-rows", "8", "--workers", "0"]


def written(folder) -> list[str]:
    """A text to train on, and where to write."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"{number} bottles of {number % 7} kinds stand on the wall" for number in range(2000)))
    return ["--data.text", str(text), "-o", str(folder / "s")]


def test_a_sweep_says_what_it_costs_on_a_slice_and_does_not_train_elsewhere(tmp_path, capsys):
    sweep = [*SWEEP, *DATA, *written(tmp_path), "--topology", "v5e:2x2"]
    assert main([*sweep, "--dry-run"]) == 0
    assert "chip-hours in all" in capsys.readouterr().out
    assert main(sweep) == 1
    assert "topology v5e:2x2 has 4 TPU devices, and here are 8 of CPU" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_trains_each_run_in_its_own_layout(tmp_path, capsys):
    main([*SWEEP, *DATA, *written(tmp_path), "--topology", "cpu:8"])  # one run is too few for a law
    assert "chip-hours in all" in capsys.readouterr().out
    (result,) = (tmp_path / "s" / "cells").glob("*/result.json")
    assert json.loads(result.read_text())["loss"] > 0
