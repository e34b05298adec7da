"""Compiling for devices that are not here: what a program needs and what it would take there.

A TPU's compiler (extra `tpu`) needs no TPU. What it says is used where it can be trusted: memory; collectives; and the
cycles of each operation, added up over loops. Time on the network is bytes over the bandwidth of the links that lead to
where they go, and is taken to overlap with computing, so an estimate is a lower bound of the time and an upper bound of
the MFU.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from parallel import program
from parallel.estimate import Estimate, Memory, network_seconds
from parallel.hardware import chip
from parallel.topology import Topology

_NUMBER = r"([\d.]+)([KMGT])"
_HBM = re.compile(rf"{_NUMBER}\)? (?:of|exceeds available HBM) \(?{_NUMBER}(?: hbm|\))", re.IGNORECASE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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
    options: Mapping[str, str] | None = None,
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
        options: of the compiler.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refused the program for another reason than its size.
    """
    sheet = chip(mesh.devices.flat[0])
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    known = dict(topology=topology, mesh=sizes, flops=flops, chip=sheet)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = lower()
        try:
            compiled = lowered.compile(dict(options or {}))
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
    platform = mesh.devices.flat[0].platform
    memory = _memory(compiled.memory_analysis(), parameters, optimizer, residuals, platform=platform)
    busy = None
    if read.cycles and sheet and sheet.clock:
        busy = read.cycles / sheet.clock
        busy += kernel_flops / (mesh.size * sheet.bf16_flops) if read.kernels else 0.0
    return Estimate(
        **known,
        memory=memory,
        memory_needed=memory.total,
        memory_limit=sheet.memory_bytes if sheet else None,
        compute_seconds=busy,
        network_seconds=network_seconds(read.collectives, sizes, topology) if sheet else None,
        collectives=read.collectives,
        compile_seconds=spent,
    )


def _memory(
    said: Any, parameters: Any, optimizer: Any, residuals: Sequence[jax.ShapeDtypeStruct], *, platform: str
) -> Memory:
    held, state = bytes_on_chip(parameters), bytes_on_chip(optimizer)
    # A TPU's compiler counts some of what loops hold twice among its temporaries (and compiles programs that by this
    # count would be too large); its peak is the size of what it allocates. A CPU's peak leaves temporaries out.
    lasting = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    room = said.peak_memory_in_bytes - lasting if platform == "tpu" else said.temp_size_in_bytes
    gradients = min(held, room)
    saved = min(bytes_on_chip(residuals), room - gradients)
    inputs = said.argument_size_in_bytes - held - state
    outputs = said.output_size_in_bytes - said.alias_size_in_bytes
    return Memory(
        parameters=held,
        optimizer=state,
        gradients=gradients,
        activations=saved,
        temporaries=room - gradients - saved,
        other=max(0, inputs) + outputs + said.generated_code_size_in_bytes,
    )


def bytes_on_chip(tree: Any) -> int:
    """Bytes of one device's shards of every array in a tree of shapes; without a sharding, of the whole array."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
