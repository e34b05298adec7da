"""The mesh: named axes over the devices there are.

Explicit axes were chosen for the whole framework: an array's sharding is part of its type, so a layout that nobody
decided is an error while tracing rather than a slow program. It asks one thing of the model code: every contraction
says how its result is laid out. That turned out to be one argument of one function (`models.layers.project`), which
is why automatic axes were not needed anywhere.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")
RESERVED = ("replica", "sequence", "expert", "pipeline")


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How many devices lie along each axis; one axis may be -1, "whatever is left".

    Attributes:
        data: copies of the model that read different rows.
        fsdp: shards of every parameter (gathered when used); each shard also reads different rows.
        tensor: shards of heads, hidden units and vocabulary inside a layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = asdict(self)
        for name, size in sizes.items():
            if size == 0 or size < -1:
                raise ValueError(f"mesh axis {name}={size}: want a positive number of devices, or -1 for what is left")
        if sum(size == -1 for size in sizes.values()) > 1:
            raise ValueError(f"mesh {self}: only one axis can be -1 (what is left)")

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Reads `"data=4,fsdp=2"`; axes not named have size 1, and an empty text means all devices on `data`.

        Raises:
            ValueError: for an axis that does not exist, one named twice, or a size that is not a whole number.
        """
        if not text.strip():
            return cls()
        sizes = {}
        for part in text.split(","):
            name, _, size = (word.strip() for word in part.partition("="))
            if name in RESERVED:
                raise ValueError(f"mesh axis '{name}' is reserved and not built yet; there are {', '.join(AXES)}")
            if name not in AXES:
                near = difflib.get_close_matches(name, AXES, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(AXES)}"
                raise ValueError(f"mesh axis '{name}' does not exist; {hint}")
            if name in sizes:
                raise ValueError(f"mesh axis '{name}' is given twice in '{text}'")
            try:
                sizes[name] = int(size)
            except ValueError:
                raise ValueError(f"mesh axis {name}='{size}': want a whole number, as in 'data=4,fsdp=2'") from None
        return cls(**({"data": 1} | sizes))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join(f"{name}={size}" for name, size in asdict(self).items())

    def resolve(self, device_count: int) -> "MeshShape":
        """The same shape with -1 replaced, for `device_count` devices.

        Raises:
            ValueError: if the axes do not multiply to the number of devices.
        """
        sizes = asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        free = [name for name, size in sizes.items() if size == -1]
        if device_count % fixed or (not free and fixed != device_count):
            raise ValueError(
                f"mesh {self} needs {'a multiple of ' if free else ''}{fixed} devices and there are {device_count}"
            )
        return MeshShape(**(sizes | {name: device_count // fixed for name in free}))

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """A mesh with explicit axes `AXES` over `devices` (all of them when not given).

        Raises:
            ValueError: if the axes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else list(devices)
        shape = tuple(asdict(self.resolve(len(devices))).values())
        kinds = (AxisType.Explicit,) * len(AXES)
        if devices == jax.devices():  # let jax place neighbours of the mesh on neighbours of the network
            return jax.make_mesh(shape, AXES, axis_types=kinds)
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=kinds)


def device_mesh(text: str = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a text such as `"fsdp=4,tensor=2"` describes, over `devices` or all there are."""
    return MeshShape.parse(text).build(devices)
