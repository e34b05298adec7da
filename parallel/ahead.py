"""Compiling for devices that are not here: what a program needs and what it would take there.

A TPU's compiler (extra `tpu`) needs no TPU. What it says is used where it can be trusted: memory; collectives; and the
cycles of each operation, added up over loops. Time on the network is bytes over the links' bandwidth at its best, and
is taken to overlap with computing, so an estimate is a lower bound of the time and an upper bound of the MFU.
"""

import difflib
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from parallel import program
from parallel.hardware import Chip, chip
from parallel.program import Collective

GENERATIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
"""TPU generations by name, with the number of dimensions of their networks."""

_HBM = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", re.IGNORECASE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Topology:
    """Devices that may not be here.

    Attributes:
        generation: one of `GENERATIONS`, or "cpu" for devices of this process.
        shape: chips along each dimension of the network.
    """

    generation: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Reads "v5p:4x4x8", "v5e:16x16" or "cpu:8".

        Raises:
            ValueError: an unknown generation, or a shape that its network does not have.
        """
        generation, _, dims = text.strip().lower().partition(":")
        known = (*GENERATIONS, "cpu")
        if generation not in known:
            near = difflib.get_close_matches(generation, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"topology '{text}': no generation '{generation}'; {hint}")
        rank = GENERATIONS.get(generation, 1)
        example = {1: "8", 2: "4x4", 3: "4x4x4"}[rank]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", dims) or dims.count("x") != rank - 1:
            raise ValueError(f"topology '{text}': {generation} has {rank} dimensions, as in '{generation}:{example}'")
        return cls(generation, tuple(map(int, dims.split("x"))))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)

    def devices(self) -> list[jax.Device]:
        """Its devices, which can be compiled for and not computed on.

        Raises:
            ValueError: the compiler is not installed, does not know the topology, or has fewer devices here (CPU).
        """
        if self.generation == "cpu":
            here = jax.devices("cpu")
            if len(here) < self.chips:
                raise ValueError(f"topology {self}: this process has {len(here)} CPU devices")
            return here[: self.chips]
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks the cloud which machine this is
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=str(self)).devices
        except Exception as error:  # whatever the plugin raises, and there may be none
            raise ValueError(
                f"topology {self}: the TPU compiler does not have it, or is not installed "
                f"(pip install 'scaling-experiments[tpu]'): {str(error).splitlines()[0]}"
            ) from None
        if len(found) != self.chips:
            raise ValueError(f"topology {self}: the compiler makes {len(found)} devices of it, not {self.chips}")
        return list(found)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one chip while a step runs.

    Attributes:
        parameters: at rest.
        optimizer: its state.
        activations: what the forward pass saves for the backward pass.
        temporaries: gradients, gathered parameters and scratch, as far as they do not share room with activations.
        other: inputs, outputs that take no argument's place, and the program itself.
    """

    parameters: int
    optimizer: int
    activations: int
    temporaries: int
    other: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step would take on a topology.

    Attributes:
        topology: the devices.
        mesh: size of each axis.
        memory: on one chip; None where the compiler refused the program for its size.
        memory_needed: bytes on one chip in all.
        memory_limit: bytes that a chip has for programs, None for a CPU.
        flops: of a step, on all chips: the exact count of matrix products of the architecture.
        compute_seconds: the compiler's cycles over the clock, kernels at peak; None where it counts none.
        network_seconds: the slowest a chip could be sending its bytes with all links at once.
        collectives: exchanges of a step.
        compile_seconds: what compiling took, tracing included.
        chip: its data sheet, None for a CPU.
    """

    topology: str
    mesh: dict[str, int]
    memory: Memory | None
    memory_needed: float
    memory_limit: float | None
    flops: float
    compute_seconds: float | None
    network_seconds: float | None
    collectives: tuple[Collective, ...]
    compile_seconds: float
    chip: Chip | None

    @property
    def chips(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool | None:
        """Whether a chip's memory holds the program; None where there is no limit known."""
        if self.memory is None or self.memory_limit is None:
            return None if self.memory else False
        return self.memory_needed <= self.memory_limit

    @property
    def step_seconds(self) -> float | None:
        """Computing and network, the one hidden behind the other."""
        if self.compute_seconds is None or self.network_seconds is None:
            return None
        return max(self.compute_seconds, self.network_seconds)

    @property
    def ideal_seconds(self) -> float | None:
        """The step's FLOPs at the chips' peak."""
        return self.flops / (self.chips * self.chip.bf16_flops) if self.chip else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs of a step over what the chips could do in its time."""
        return self.ideal_seconds / self.step_seconds if self.step_seconds else None

    @property
    def verdict(self) -> str:
        """What bounds the step: compute (half of the peak or more), memory on the chip, or the network."""
        if self.memory is None:
            return "too large"
        if self.step_seconds is None:
            return "unknown"
        if self.network_seconds > self.compute_seconds:
            return "network-bound"
        return "compute-bound" if self.ideal_seconds >= 0.5 * self.compute_seconds else "memory-bound"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain types for JSON."""
        return {
            "topology": self.topology,
            "mesh": self.mesh,
            "chips": self.chips,
            "hbm_bytes_per_chip": (asdict(self.memory) if self.memory else {}) | {"total": self.memory_needed},
            "hbm_limit_bytes": self.memory_limit,
            "fits": self.fits,
            "step_seconds_estimate": self.step_seconds,
            "compute_seconds": self.compute_seconds,
            "network_seconds": self.network_seconds,
            "mfu_estimate": self.mfu,
            "flops_per_step": self.flops,
            "collectives": [asdict(each) for each in self.collectives],
            "compile_seconds": self.compile_seconds,
            "verdict": self.verdict,
        }


def estimate(
    lower: Callable[[], jax.stages.Lowered],
    mesh: Mesh,
    topology: Topology,
    *,
    parameters: Any,
    optimizer: Any,
    residuals: Sequence[jax.ShapeDtypeStruct],
    flops: float,
    kernel_flops: float = 0.0,
) -> Estimate:
    """Compiles a step for a mesh of devices that may not be here, and reads off what it needs.

    Args:
        lower: traces the step; called with the mesh set.
        mesh: over the topology's devices.
        topology: where they are.
        parameters: tree of `jax.ShapeDtypeStruct` with shardings.
        optimizer: likewise.
        residuals: what the forward pass saves.
        flops: of a step, on all chips.
        kernel_flops: of them, what hand-written kernels do, which the compiler's cycles leave out.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refused the program for another reason than its size.
    """
    sheet = chip(mesh.devices.flat[0])
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    known = dict(topology=str(topology), mesh=sizes, flops=flops, chip=sheet)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            found = _HBM.search(str(error))
            if not found:
                raise
            needed, limit = (float(found[i]) * _UNITS[found[i + 1].upper()] for i in (1, 3))
            return Estimate(
                **known, memory=None, memory_needed=needed, memory_limit=limit, compute_seconds=None,
                network_seconds=None, collectives=(), compile_seconds=time.perf_counter() - began,
            )  # fmt: skip
    spent = time.perf_counter() - began
    read = program.read(compiled.as_text(), mesh)
    memory = _memory(compiled.memory_analysis(), parameters, optimizer, residuals)
    busy = None
    if read.cycles and sheet and sheet.clock:
        busy = read.cycles / sheet.clock
        busy += kernel_flops / (mesh.size * sheet.bf16_flops) if read.kernels else 0.0
    sent = sum(each.bytes for each in read.collectives)
    return Estimate(
        **known,
        memory=memory,
        memory_needed=memory.total,
        memory_limit=sheet.memory_bytes if sheet else None,
        compute_seconds=busy,
        network_seconds=sent / sheet.link_bandwidth if sheet and sheet.link_bandwidth else None,
        collectives=read.collectives,
        compile_seconds=spent,
    )


def _memory(said: Any, parameters: Any, optimizer: Any, residuals: Sequence[jax.ShapeDtypeStruct]) -> Memory:
    held, state = bytes_on_chip(parameters), bytes_on_chip(optimizer)
    saved = min(bytes_on_chip(residuals), said.temp_size_in_bytes)
    inputs = said.argument_size_in_bytes - held - state
    outputs = said.output_size_in_bytes - said.alias_size_in_bytes
    return Memory(
        parameters=held,
        optimizer=state,
        activations=saved,
        temporaries=said.temp_size_in_bytes - saved,
        other=max(0, inputs) + outputs + said.generated_code_size_in_bytes,
    )


def bytes_on_chip(tree: Any) -> int:
    """Bytes of one device's shards of every array in a tree of shapes; without a sharding, of the whole array."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
