"""Chips that may not be here: what groups of them are called, how they are wired, their devices to compile for."""

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import topologies

from parallel.hardware import CHIPS, NOMINAL, Chip

GENERATIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
"""TPU generations by name, with the number of dimensions of their networks."""

GPUS = ("a100", "h100", "h200")
"""GPUs by name: nodes of up to eight that are all joined, and a network between nodes."""

_NODE = 8
_SHEETS = {"v4": "v4", "v5e": "v5 lite", "v5p": "v5", "v6e": "v6 lite"} | {name: name for name in GPUS}


@dataclass(frozen=True)
class Topology:
    """Devices that may not be here.

    Attributes:
        generation: one of `GENERATIONS` or `GPUS`, or "cpu" for devices of this process.
        shape: chips along each dimension of the network; nodes, where there are several, and GPUs of each.
    """

    generation: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Reads "v5p:4x4x8", "v5e:16x16", "h100:8", "h100:4x8" (four nodes) or "cpu:8".

        Raises:
            ValueError: an unknown generation, or a shape that its network does not have.
        """
        generation, _, dims = text.strip().lower().partition(":")
        known = (*GENERATIONS, *GPUS, "cpu")
        if generation not in known:
            near = difflib.get_close_matches(generation, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"topology '{text}': no generation '{generation}'; {hint}")
        gpus = generation in GPUS
        rank = GENERATIONS.get(generation, 2 if gpus and "x" in dims else 1)
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", dims) or dims.count("x") != rank - 1:
            example = {1: "8", 2: "4x4", 3: "4x4x4"}[rank]
            wanted = f"{generation} has {rank} dimensions, as in '{generation}:{example}'"
            if gpus:
                wanted = f"a node is '{generation}:8', four nodes '{generation}:4x8'"
            raise ValueError(f"topology '{text}': {wanted}")
        shape = tuple(map(int, dims.split("x")))
        if gpus and shape[-1] > _NODE:
            nodes = f"{generation}:{math.ceil(math.prod(shape) / _NODE)}x{_NODE}"
            raise ValueError(f"topology '{text}': a node has up to {_NODE} GPUs; several nodes are '{nodes}'")
        return cls(generation, shape)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """The data sheet of its chips; nominal figures for a CPU, which rank layouts and say nothing of its speed."""
        return CHIPS[_SHEETS[self.generation]] if self.generation in _SHEETS else NOMINAL

    @property
    def platform(self) -> str:
        """What JAX calls its devices."""
        return "cpu" if self.generation == "cpu" else "gpu" if self.generation in GPUS else "tpu"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Along which dimensions the last chip is a neighbour of the first one.

        Slices of v4 and v5p do in all of them where they are made of whole cubes of 4x4x4; those of v5e and v6e only
        along a side of 16, the whole width of a pod (Cloud TPU documentation, pages of each generation).
        """
        if len(self.shape) == 3:
            return (all(size % 4 == 0 for size in self.shape),) * 3
        return tuple(size == 16 or self.platform == "cpu" for size in self.shape)

    def links(self, mesh: Mapping[str, int], axes: Sequence[str]) -> float:
        """Share of a chip's links that chips of a group over mesh axes can use to exchange.

        A dimension in which they do not differ is of no use; one that they fill only in part, or whose ends are not
        joined, is a line and no ring, and has half the use: its last chips have one link each. GPUs of a node are all
        joined; out of it lead as many network cards as there are GPUs of the group in it.

        Args:
            mesh: size of each axis, in the order in which devices are laid out.
            axes: those over which chips exchange.
        """
        if self.platform == "gpu":
            *nodes, inside = self._reach(mesh, axes)
            cards = inside * self.chip.node_bandwidth / self.chip.link_bandwidth
            return min(1.0, cards) if math.prod(nodes) > 1 else 1.0
        use = 0.0
        for reached, size, wraps in zip(self._reach(mesh, axes), self.shape, self.wraps, strict=True):
            line = not wraps or (reached < size and self.platform != "cpu")
            use += 0 if reached == 1 else 0.5 if line else 1
        return use / len(self.shape)

    def _reach(self, mesh: Mapping[str, int], axes: Sequence[str]) -> list[int]:
        """Places along each dimension that the chips of a group have."""
        places = np.indices(self.shape).reshape(len(self.shape), *mesh.values())
        group = places[(slice(None), *(slice(None) if name in axes else 0 for name in mesh))]
        return [len(np.unique(along)) for along in group]

    @property
    def present(self) -> bool:
        """Whether a step can be compiled for it here: not for GPUs that are elsewhere."""
        return self.platform != "gpu" or len(_gpus(self.generation)) >= self.chips

    def devices(self) -> list[jax.Device]:
        """Its devices in the order of their places, which can be compiled for and not computed on.

        Raises:
            ValueError: the compiler is not installed, does not know the topology, or needs the devices themselves and
                here are fewer (CPU, GPU).
        """
        if self.generation == "cpu":
            here = jax.devices("cpu")
            if len(here) < self.chips:
                raise ValueError(f"topology {self}: this process has {len(here)} CPU devices")
            return here[: self.chips]
        if self.platform == "gpu":
            here = _gpus(self.generation)
            if len(here) < self.chips:
                raise ValueError(f"topology {self}: GPUs are compiled for where they are; here are {len(here)} of them")
            return here[: self.chips]
        # Unless told how the slice is wired, the compiler takes its ends for open, and writes a gather over the whole
        # of a v5p slice as a sum of zero-padded shards, which sends twice the bytes.
        told = {"wrap": (*self.wraps, False)[:3]}
        if self.generation == "v4":  # whose two cores are else a device each
            told["chip_config_name"] = "megacore"
        try:
            with _compiling():
                found = topologies.get_topology_desc(platform="tpu", topology_name=str(self), **told).devices
        except Exception as error:  # whatever the plugin raises, and there may be none
            raise ValueError(
                f"topology {self}: the TPU compiler does not have it, or is not installed "
                f"(pip install 'scaling-experiments[tpu]'): {next(iter(str(error).splitlines()), type(error).__name__)}"
            ) from None
        if len(found) != self.chips:
            raise ValueError(f"topology {self}: the compiler makes {len(found)} devices of it, not {self.chips}")
        return sorted(found, key=lambda device: device.coords)  # not host by host: `links` counts on it


def _gpus(name: str) -> list[jax.Device]:
    """Those of that name that this process has."""
    try:
        return [device for device in jax.devices("gpu") if name in device.device_kind.lower()]
    except RuntimeError:  # no such backend
        return []


@contextmanager
def _compiling() -> Iterator[None]:
    """While the TPU's compiler is loaded: as one of several, and as if on one machine that it need not ask about."""
    settings = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: value for name, value in settings.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
