"""Mesh shapes and rules: what is accepted, what it becomes, and how mistakes are told."""

from dataclasses import replace

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from models import zoo
from models.transformer import rules_for
from parallel.mesh import AXES, RESERVED, MeshShape, device_mesh
from parallel.sharding import Rules


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", MeshShape(data=-1)),
        ("fsdp=8", MeshShape(data=1, fsdp=8)),
        (" tensor = 2 , fsdp=-1", MeshShape(data=1, fsdp=-1, tensor=2)),
        ("data=2,fsdp=2,tensor=2", MeshShape(data=2, fsdp=2, tensor=2)),
    ],
)
def test_parse(text, shape):
    assert MeshShape.parse(text) == shape
    assert MeshShape.parse(str(shape)) == shape


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("'fdsp' does not exist; did you mean 'fsdp'", "fdsp=8"),
        ("'zzz' does not exist; there are data, fsdp, tensor", "zzz=8"),
        ("'sequence' is reserved and not built yet", "data=2,sequence=4"),
        ("'data' is given twice", "data=2,data=4"),
        ("fsdp='two': want a whole number", "fsdp=two"),
        ("fsdp='': want a whole number", "fsdp"),
        ("fsdp=0: want a positive", "fsdp=0"),
        ("fsdp=-2: want a positive", "fsdp=-2"),
        ("only one axis can be -1", "data=-1,fsdp=-1"),
    ],
)
def test_parse_mistakes(message, text):
    with pytest.raises(ValueError, match=message):
        MeshShape.parse(text)


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_axes_are_not_axes(name):
    assert name not in AXES


def test_resolve():
    assert MeshShape(tensor=2).resolve(8) == MeshShape(data=4, tensor=2)
    assert MeshShape(data=1, fsdp=-1).resolve(6) == MeshShape(data=1, fsdp=6)
    for shape, message in {
        MeshShape(data=3): "needs 3 devices and there are 8",
        MeshShape(tensor=3): "needs a multiple of 3 devices and there are 8",
        MeshShape(data=4, fsdp=4): "needs 16 devices and there are 8",
    }.items():
        with pytest.raises(ValueError, match=message):
            shape.resolve(8)


def test_build():
    mesh = device_mesh("fsdp=4,tensor=2")
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Explicit}
    part = device_mesh("", jax.devices()[2:5])
    assert dict(part.shape) == {"data": 3, "fsdp": 1, "tensor": 1}
    assert list(part.devices.flat) == jax.devices()[2:5]
    with pytest.raises(ValueError, match="needs 2 devices and there are 8"):
        device_mesh("data=2")


def test_rules_lay_out():
    rules = Rules()
    assert rules.spec("batch", "length", "embed") == PartitionSpec(("data", "fsdp"), None, None)
    assert rules.spec("embed", "hidden") == PartitionSpec(None, "tensor")
    assert rules.resting_spec("embed", "hidden") == PartitionSpec("fsdp", "tensor")


def test_rules_refuse():
    rules = Rules()
    with pytest.raises(ValueError, match="'hiden' does not exist; did you mean 'hidden'"):
        rules.spec("hiden")
    with pytest.raises(ValueError, match="collide"):
        rules.spec("hidden", "vocab")
    with pytest.raises(ValueError, match="collide"):
        replace(rules, hidden=("fsdp",)).resting_spec("embed", "hidden")
    with pytest.raises(ValueError, match="'resting' does not exist"):
        rules.spec("resting")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "split"),
    [(4, 4, "kv_heads"), (4, 2, "kv_heads"), (4, 1, "groups"), (6, 3, "groups")],
)
def test_tensor_axis_splits_key_heads_or_the_queries_that_share_them(heads, kv_heads, split):
    architecture = zoo.decoder(width=48, depth=1, heads=heads, kv_heads=kv_heads, vocab=16, length=8)
    rules = rules_for(architecture, device_mesh("tensor=2", jax.devices()[:2]))
    assert (rules.kv_heads, rules.groups) == ((("tensor",), ()) if split == "kv_heads" else ((), ("tensor",)))


def test_heads_that_the_tensor_axis_does_not_divide():
    architecture = zoo.decoder(width=48, depth=1, heads=3, vocab=16, length=8)
    with pytest.raises(ValueError, match=r"3 heads .* tensor=2"):
        rules_for(architecture, device_mesh("tensor=2", jax.devices()[:2]))
