"""Names of topologies, and which links of a chip lead along a mesh axis."""

import os

import pytest

from parallel.topology import Topology


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5q:2x2", "did you mean 'v5p'"),
        ("v5p:4x4", "v5p has 3 dimensions, as in 'v5p:4x4x4'"),
        ("v5e:0x4", "v5e has 2 dimensions"),
        ("", "there are v4, v5e, v5p, v6e, a100, h100, h200, cpu"),
        ("h100:16", "a node has up to 8 GPUs; several nodes are 'h100:2x8'"),
        ("h100:2x2x2", "a node is 'h100:8', four nodes 'h100:4x8'"),
    ],
)
def test_topologies_that_are_not(text, said):
    with pytest.raises(ValueError, match=said):
        Topology.parse(text)


def test_topologies_that_are():
    assert str(Topology.parse("v5p:4x4x8")) == "v5p:4x4x8"
    assert Topology.parse("v5p:4x4x8").chips == 128
    assert Topology.parse("v5e:4x4").chip.name == "TPU v5e"
    assert Topology.parse("cpu:8").platform == "cpu"
    with pytest.raises(ValueError, match="this process has 8 CPU devices"):
        Topology.parse("cpu:4096").devices()
    assert str(Topology.parse("H100:4x8")) == "h100:4x8"
    assert Topology.parse("h100:4x8").chips == 32
    assert Topology.parse("h100:8").platform == "gpu"


@pytest.mark.parametrize(
    ("text", "mesh", "axes", "share"),
    [
        ("v5p:4x4x4", {"fsdp": 64}, ("fsdp",), 1),
        ("v5p:4x4x4", {"fsdp": 16, "tensor": 4}, ("tensor",), 1 / 3),  # a ring along one of three dimensions
        ("v5p:4x4x4", {"fsdp": 16, "tensor": 4}, ("fsdp",), 2 / 3),
        ("v5p:4x4x4", {"fsdp": 8, "tensor": 8}, ("tensor",), 1 / 2),  # two of four in the second one: a line
        ("v5p:4x4x4", {"fsdp": 16, "tensor": 4}, ("fsdp", "tensor"), 1),
        ("v5p:2x2x4", {"fsdp": 16}, ("fsdp",), 1 / 2),  # too small to have its ends joined
        ("v5e:4x4", {"fsdp": 16}, ("fsdp",), 1 / 2),
        ("v5e:8x16", {"data": 8, "fsdp": 16}, ("fsdp",), 1 / 2),
        ("v5e:8x16", {"data": 8, "fsdp": 16}, ("data",), 1 / 4),
        ("v5e:16x16", {"data": 16, "fsdp": 16}, ("data",), 1 / 2),
        ("cpu:8", {"data": 2, "fsdp": 4}, ("fsdp",), 1),
        ("h100:8", {"data": 2, "fsdp": 4}, ("fsdp",), 1),
        ("h100:4x8", {"data": 4, "fsdp": 8}, ("fsdp",), 1),  # all joined in a node
        ("h100:4x8", {"data": 4, "fsdp": 8}, ("data",), 50 / 450),  # one card for each
        ("h100:4x8", {"fsdp": 32}, ("fsdp",), 8 * 50 / 450),  # eight cards lead out
        ("h100:4x8", {"data": 2, "fsdp": 16}, ("data",), 50 / 450),
    ],
)
def test_only_links_along_the_axis_count(text, mesh, axes, share):
    assert Topology.parse(text).links(mesh, axes) == pytest.approx(share)


def test_gpus_are_compiled_for_where_they_are():
    assert not Topology.parse("h100:8").present
    assert Topology.parse("v5p:4x4x4").present
    with pytest.raises(ValueError, match="GPUs are compiled for where they are; here are 0 of them"):
        Topology.parse("h100:8").devices()


@pytest.mark.slow
@pytest.mark.parametrize("text", ["v4:4x4x4", "v5e:4x4", "v5p:4x4x8", "v6e:16x16"])
def test_a_device_is_a_chip(text, monkeypatch):
    """To the TPU's compiler, in whose default a v4 chip is two; and what loading it needed is not left behind."""
    pytest.importorskip("libtpu")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    topology = Topology.parse(text)
    devices = topology.devices()
    assert len({tuple(device.coords) for device in devices}) == len(devices) == topology.chips
    assert "TPU_SKIP_MDS_QUERY" not in os.environ
