"""What a compiled program is said to exchange, against what its layout makes it exchange; topologies; the command."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec, reshard

from experiments.cli import main
from parallel.ahead import bytes_on_chip, estimate
from parallel.mesh import device_mesh
from parallel.program import Collective, read
from parallel.topology import Topology

LOOPS, ROWS, WIDTH = 5, 16, 32


def compiled(mesh, function, *arguments):
    """The text of a function of float32 arrays, given as (shape, axes)."""
    with jax.set_mesh(mesh):
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
            for shape, axes in arguments
        ]
        return jax.jit(function).lower(*shapes).compile().as_text()


def gathered_in_a_loop(x, weights):
    """Weights split over fsdp are gathered in every pass."""

    def body(x, weight):
        return jnp.tanh(jnp.einsum("bd,de->be", x, reshard(weight, PartitionSpec()))), None

    return jax.lax.scan(body, x, weights)[0]


def test_a_loop_counts_as_often_as_it_runs():
    mesh = device_mesh("fsdp=8")
    arguments = ((ROWS, WIDTH), ("fsdp", None)), ((LOOPS, WIDTH, WIDTH), (None, "fsdp", None))
    (only,) = read(compiled(mesh, gathered_in_a_loop, *arguments), mesh).collectives
    assert only == Collective(
        kind="all-gather", axes=("fsdp",), count=LOOPS, bytes=LOOPS * 4 * WIDTH * WIDTH * 7 / 8
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "split", "devices"),
    [("data=2,fsdp=4", "fsdp", 4), ("data=4,tensor=2", "tensor", 2), ("data=4,tensor=2", "data", 4)],
)
def test_sums_are_told_by_the_axis_they_are_over(text, split, devices):
    mesh = device_mesh(text)

    def total(x, y):
        return jnp.einsum("ab,bc->ac", x, y, out_sharding=PartitionSpec())

    arguments = ((ROWS, WIDTH), (None, split)), ((WIDTH, WIDTH), (split, None))
    (only,) = read(compiled(mesh, total, *arguments), mesh).collectives
    sent = 2 * 4 * ROWS * WIDTH * (devices - 1) / devices
    assert only == Collective(kind="all-reduce", axes=(split,), count=1, bytes=sent)


def test_what_stays_on_a_device_exchanges_nothing():
    mesh = device_mesh("data=8")
    program = read(compiled(mesh, jnp.tanh, ((ROWS, WIDTH), ("data", None))), mesh)
    assert program.collectives == ()
    assert program.cycles == 0  # a CPU's compiler counts none


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", ("fsdp",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a'}", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp", "tensor")),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", ("fsdp",)),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", ("fsdp", "tensor")),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
    ],
)
def test_groups_of_devices_are_read_in_every_form(groups, axes):
    text = "\n".join(
        (
            "ENTRY %main (p: f32[8]) -> f32[8] {",
            "  %p = f32[8]{0} parameter(0)",
            f"  ROOT %sum = f32[8]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add",
            "}",
        )
    )
    (only,) = read(text, device_mesh("data=2,fsdp=2,tensor=2")).collectives
    assert only.axes == axes


def test_a_tpu_writes_a_scattered_sum_as_a_fusion_of_both_and_cuts_gathers_into_steps():
    text = "\n".join(
        (
            "%all-reduce-scatter.1 (q: f32[64]) -> f32[8] {",
            "  %q = f32[64]{0} parameter(0)",
            "  %sum = f32[64]{0:T(128)} all-reduce(%q), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}",
            "}",
            "%step (q: f32[8]) -> f32[64] {",
            "  %q = f32[8]{0} parameter(0)",
            "  ROOT %all = f32[64]{0:T(128)} all-gather(%q), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}",
            "}",
            "ENTRY %main (p: f32[64]) -> f32[8] {",
            "  %p = f32[64]{0} parameter(0)",
            '  %a = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1, x={"estimated_cycles":"70"}',
            "  %b = f32[64]{0} fusion(%a), kind=kCustom, calls=%step",
            "  %c = f32[64]{0} fusion(%a), kind=kCustom, calls=%step",
            "}",
        )
    )
    program = read(text, device_mesh("fsdp=8"))
    assert program.cycles == 70
    assert {(each.kind, each.count, each.bytes) for each in program.collectives} == {
        ("reduce-scatter", 1, 4 * 64 * 7 / 8),
        ("all-gather", 1, 4 * 64 * 7 / 8),
    }


def test_a_ragged_exchange_is_as_much_as_its_smaller_buffer():
    text = "\n".join(
        (
            "ENTRY %main (p: bf16[64,8], q: bf16[256,8], s: s32[4]) -> bf16[256,8] {",
            "  %p = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)",
            "  %q = bf16[256,8]{1,0:T(8,128)(2,1)} parameter(1)",
            "  %s = s32[4]{0:T(128)} parameter(2)",
            "  %there = bf16[256,8]{1,0:T(8,128)(2,1)} ragged-all-to-all(%p, %q, %s, %s, %s, /*index=5*/%s), "
            "channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}",
            "  ROOT %back = bf16[64,8]{1,0:T(8,128)(2,1)} ragged-all-to-all(%there, %p, %s, %s, %s, /*index=5*/%s), "
            "channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}",
            "}",
        )
    )
    (only,) = read(text, device_mesh("expert=4,tensor=2")).collectives
    assert only == Collective(kind="ragged-all-to-all", axes=("expert",), count=2, bytes=2 * 2 * 64 * 8 * 3 / 4)


def test_bytes_are_those_of_one_shard():
    mesh = device_mesh("fsdp=4,tensor=2")
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    tree = [jax.ShapeDtypeStruct((8, 8), jnp.bfloat16, sharding=split), jax.ShapeDtypeStruct((3,), jnp.float32)]
    assert bytes_on_chip(tree) == 8 * 8 * 2 // 8 + 3 * 4


def test_the_command_says_what_a_step_holds_and_exchanges(capsys, monkeypatch):
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")  # the tests' eight devices are these
    size = ["--model.width", "32", "--model.depth", "1", "--model.heads", "2", "--vocab", "128", "--length", "32"]
    assert main(["compile", "--topology", "cpu:8", *size, "--mesh", "fsdp=4,tensor=2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["mesh"] == {"fsdp": 4, "tensor": 2}
    assert said["chips"] == 8
    held = said["hbm_bytes_per_chip"]
    assert held["optimizer"] == pytest.approx(2 * held["parameters"], rel=0.01)  # AdamW's two moments
    assert held["total"] == sum(size for part, size in held.items() if part != "total")
    assert {each["kind"] for each in said["collectives"]} >= {"all-gather", "all-reduce"}
    assert said["flops_per_step"] > 0
    assert said["step_seconds_estimate"] is None  # a CPU's compiler counts no cycles
    assert main(["compile", "--topology", "cpu:8", *size, "--batch", "12"]) == 1
    assert "12 rows cannot be shared equally by 8 devices (fsdp)" in capsys.readouterr().err
    assert main(["compile", "--topology", "cpu:8", *size, "--microbatches", "2"]) == 1
    assert "microbatches and rounds are of a pipeline" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (["--mesh", "fsdp=2,sequence=4", "--context", "ring"], r"collective-permute +sequence"),
        (["--mesh", "pipeline=2,fsdp=4", "--microbatches", "2", "--batch", "8"], r"collective-permute +pipeline"),
        (["--mesh", "fsdp=2,tensor=4", "--stream", "split"], r"all-gather +tensor"),
    ],
)
def test_the_command_compiles_any_layout_that_a_run_can_have(layout, said, capsys, monkeypatch):
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
    size = ["--model.width", "32", "--model.depth", "2", "--model.heads", "4", "--vocab", "128", "--length", "32"]
    assert main(["compile", "--topology", "cpu:8", *size, *layout]) == 0
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.parametrize(
    "said",
    [
        "Ran out of memory in memory space hbm. Used 25.5G of 15.75G hbm. Exceeded hbm capacity by 9.75G.",
        "Ran out of memory on HBM, the total required for HLO temporaries (25.5G) exceeds available HBM (15.75G).",
    ],
)
def test_a_program_that_the_compiler_refuses_for_its_size_is_told_with_what_it_needs(said):
    class Lowered:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

    nothing = dict(parameters=(), optimizer=(), residuals=(), flops=1.0)
    found = estimate(Lowered, device_mesh("fsdp=8"), Topology.parse("cpu:8"), **nothing)
    assert found.fits is False
    assert (found.memory_needed, found.memory_limit) == (25.5 * 2**30, 15.75 * 2**30)
