"""A step worked out from numbers alone: what it holds, computes and exchanges on a mesh, uncompiled, in microseconds.

Knows arrays by their bytes and the mesh axes that split them, and no models. The constants below were set once by what
the TPU compiler says of decoders, encoders and encoder-decoders (`tests/parallel/test_analytic.py` holds both against
each other).
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from parallel.estimate import Estimate, Memory, network_seconds
from parallel.pipeline import AXIS, Pipeline
from parallel.program import Collective
from parallel.topology import Topology

PRODUCTS = 0.85
"""Share of the peak at which matrix products run."""

COPIES = 0.36
"""Share of the memory's bandwidth at which an array is copied, reading and writing counted."""

SCATTERED = 32
"""Devices among which the TPU compiler scatters a sum, at most: over more of them it sums everything everywhere."""

PROGRAM = 30 * 2**20
"""Bytes of the program itself."""


def shards(mesh: Mapping[str, int], axes: tuple[str, ...]) -> int:
    """Parts that an array is split into over mesh axes."""
    return math.prod(mesh.get(name, 1) for name in axes)


@dataclass(frozen=True)
class Split:
    """An array in numbers.

    Attributes:
        bytes: of the whole.
        axes: mesh axes that it is split over.
    """

    bytes: float
    axes: tuple[str, ...] = ()

    def on_chip(self, mesh: Mapping[str, int]) -> float:
        """Bytes on one device."""
        return self.bytes / shards(mesh, self.axes)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter in numbers.

    Attributes:
        name: for messages.
        size: entries.
        resting: mesh axes that split each of its axes where it rests.
        used: mesh axes that split it while it is computed with.
        layers: how many layers of a loop it is of, one of which is gathered at a time.
        shape: entries along each axis.
    """

    name: str
    shape: tuple[int, ...]
    resting: tuple[tuple[str, ...], ...]
    used: tuple[str, ...]
    layers: int = 1

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    def at_rest(self, mesh: Mapping[str, int]) -> float:
        """Entries on one device."""
        return self.size / math.prod(shards(mesh, axes) for axes in self.resting)

    def gathered(self, mesh: Mapping[str, int]) -> float:
        """Entries on one device while it is computed with, all layers."""
        return self.size / shards(mesh, self.used)

    def shared(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """Mesh axes over which it is gathered to be computed with."""
        resting = {name for axes in self.resting for name in axes}
        return tuple(name for name in mesh if name in resting - set(self.used) and mesh[name] > 1)

    def summed(self, mesh: Mapping[str, int], readers: tuple[str, ...]) -> tuple[str, ...]:
        """Mesh axes over which its gradient is summed: whose devices read other rows with it, or keep a part of it."""
        told = {*self.shared(mesh), *readers} - set(self.used)
        return tuple(name for name in mesh if name in told and mesh[name] > 1)

    def misfit(self, mesh: Mapping[str, int]) -> str:
        """Why the mesh cannot split it; empty if it can."""
        for size, axes in zip(self.shape, self.resting, strict=True):
            if size % shards(mesh, axes):
                return f"{self.name} has an axis of {size}, which {shards(mesh, axes)} shards do not divide"
        return ""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Activations that devices exchange.

    Attributes:
        kind: one of `parallel.program.KINDS`.
        axes: mesh axes along which.
        count: how often in a step, forward and back.
        array: what is exchanged, of a row: what a device sends, or of gathers and sums what it has in the end.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    array: Split


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step does for each row, in numbers that hold on any mesh with the same axes.

    Attributes:
        weights: the parameters.
        moments: bytes of the optimizer's state for each byte of parameters.
        saved: what the forward pass of all blocks saves for the backward pass, of a row.
        kept: what it saves that does not grow with rows (gathered weights, where nothing is computed again).
        repeat: what products with weights make in one repeat of a stack's blocks, and a kernel's notes, of a row.
        blocks: how many those are.
        scores: of queries and keys of one of them, where no kernel fuses attention.
        stacks: arrays of each repeat that are saved.
        body: everything that all blocks make, of a row.
        logits: float32 logits that exist at a time, of a row.
        readers: mesh axes whose devices read different rows, or parts of them.
        exchanges: what a block's devices tell each other.
        flops: products of a row in training, by the count of the architecture.
        executed: products of a row that are computed, what is computed again included.
        again: how often the forward pass runs again for the backward one: 0 or 1.
        stream: the residual stream, of a row.
        copies: how often what is saved is copied: twice where a loop over blocks keeps it in stacks, into them and out.
        pipeline: how a batch goes through stages; None where there is one.
    """

    weights: tuple[Weight, ...]
    moments: float
    saved: tuple[Split, ...]
    kept: tuple[Split, ...]
    repeat: tuple[Split, ...]
    blocks: int
    scores: tuple[Split, ...]
    stacks: int
    body: tuple[Split, ...]
    logits: Split
    readers: tuple[str, ...]
    exchanges: tuple[Exchange, ...]
    flops: float
    executed: float
    again: int
    stream: Split
    copies: int = 0
    pipeline: Pipeline | None = None

    def ticks(self, mesh: Mapping[str, int]) -> int:
        """How often a stage computes a piece of its layers, busy or not; once where there is one stage."""
        return len(self.pipeline.schedule(mesh[AXIS])[0]) if self.pipeline else 1

    def stretch(self, mesh: Mapping[str, int]) -> float:
        """Work of a stage over what it would be if stages were never idle: an idle one computes, for nothing."""
        return 1 / (1 - self.pipeline.bubble(mesh[AXIS])) if self.pipeline else 1.0

    def turns(self, weight: Weight, mesh: Mapping[str, int]) -> float:
        """How often a weight is used in a forward pass of a part of a batch."""
        return self.ticks(mesh) / self.pipeline.rounds if self.pipeline and AXIS in weight.used else 1.0


def predict(work: Work, *, topology: Topology, mesh: Mapping[str, int], rows: int, parts: int = 1) -> Estimate:
    """What a step needs and takes.

    Args:
        work: what it does.
        topology: where.
        mesh: size of each axis, in the order in which devices are laid out.
        rows: of a batch, on all chips.
        parts: that a batch is computed in, one after another.
    """
    chip, sizes = topology.chip, {name: size for name, size in mesh.items() if size > 1}
    memory = _memory(work, topology, sizes, rows / parts, parts)
    collectives = _collectives(work, topology, sizes, rows, parts)
    rated = topology.platform != "cpu"
    return Estimate(
        topology=topology,
        mesh=sizes,
        memory=memory,
        memory_needed=memory.total,
        memory_limit=chip.memory_bytes if rated else None,
        flops=work.flops * rows,
        compute_seconds=_compute_seconds(work, topology, sizes, rows, parts),
        network_seconds=network_seconds(collectives, sizes, topology),
        collectives=collectives,
        compile_seconds=None,
        chip=chip if rated else None,
    )


def _memory(work: Work, topology: Topology, mesh: Mapping[str, int], rows: float, parts: int) -> Memory:
    parameters = 4 * sum(weight.at_rest(mesh) for weight in work.weights)
    single = [2 * weight.gathered(mesh) for weight in work.weights if weight.layers == 1]
    # While the head runs: logits, whose gradient is made inside the products that want it; weights and their gradient.
    logits = rows * work.logits.on_chip(mesh)
    head = logits + 2 * max(single, default=0.0)
    # While the last block of a repeat runs backward: what products of the repeat make; weights of the block, gradients
    # of its products; scores and theirs. Some is in memory that is nearer; half of that is for what is read next.
    layer = sum(2 * weight.gathered(mesh) / weight.layers for weight in work.weights if weight.layers > 1) / work.blocks
    microbatches, ticks = work.pipeline.microbatches if work.pipeline else 1, work.ticks(mesh)
    made, scores = (rows / microbatches * _on_chip(each, mesh) for each in (work.repeat, work.scores))
    block = max(0.0, layer + made + made / work.blocks + 2 * scores - topology.chip.vector_memory_bytes / 2)
    # Where loops keep several stacks, the allocator puts nothing else where logits were.
    temporaries = head + block if work.stacks > 1 else max(head, block)
    # Microbatches in flight: what each tick saves, and hands on. In several rounds it saves a piece of the layers too.
    flight = rows * work.stretch(mesh) * _on_chip(work.saved, mesh)
    if work.pipeline:
        flight += ticks * rows / microbatches * work.stream.on_chip(mesh)
        pieces = [weight.at_rest(mesh) for weight in work.weights if AXIS in weight.used]
        flight += 4 * ticks * sum(pieces) / work.pipeline.rounds if work.pipeline.rounds > 1 else 0.0
    return Memory(
        parameters=parameters,
        optimizer=work.moments * parameters,
        gradients=parameters * (2 if parts > 1 else 1),
        activations=flight + _on_chip(work.kept, mesh),
        temporaries=temporaries,
        other=PROGRAM,
    )


def _scatters(work: Work, weight: Weight, topology: Topology, mesh: Mapping[str, int]) -> bool:
    """Whether each device gets its part of a gradient's sum: where it is over shards alone, on TPUs few of them."""
    most = SCATTERED if topology.platform == "tpu" else math.inf
    return weight.summed(mesh, work.readers) == weight.shared(mesh) and shards(mesh, weight.shared(mesh)) <= most


def _collectives(
    work: Work, topology: Topology, mesh: Mapping[str, int], rows: int, parts: int
) -> tuple[Collective, ...]:
    sums: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(lambda: [0, 0.0])

    def add(kind: str, axes: tuple[str, ...], count: float, size: float) -> None:
        axes = tuple(name for name in mesh if name in axes)
        if not axes:
            return
        share = 1.0 if kind == "collective-permute" else 1 - 1 / shards(mesh, axes)
        total = sums[kind, axes]
        total[0] += count
        total[1] += count * share * size * (2 if kind == "all-reduce" else 1)

    for weight in work.weights:
        gathered = weight.shared(mesh)
        layers = weight.layers / (mesh[AXIS] if work.pipeline and AXIS in weight.used else 1)
        size, uses = 2 * weight.gathered(mesh) / layers, parts * layers * work.turns(weight, mesh)
        add("all-gather", gathered, uses * (1 + work.again * (weight.layers > 1)), size)
        kind = "reduce-scatter" if _scatters(work, weight, topology, mesh) else "all-reduce"
        add(kind, weight.summed(mesh, work.readers), uses, size)
    steps = parts * (work.pipeline.microbatches if work.pipeline else 1)
    for each in work.exchanges:
        own = work.stretch(mesh) / mesh.get(AXIS, 1)  # of blocks: a stage has its layers alone
        add(each.kind, each.axes, each.count * steps * own, each.array.on_chip(mesh) * rows / steps)
    if work.pipeline:  # handed on forward and back; then all stages are told what the last one made, and gradients
        ticks, size = work.ticks(mesh), work.stream.on_chip(mesh) * rows / parts
        add("collective-permute", (AXIS,), 2 * ticks * parts, size / work.pipeline.microbatches)
        add("all-reduce", (AXIS,), 3 * parts, size)
        if (rounds := work.pipeline.rounds) > 1:  # layers rest in order, and are dealt out before and after
            layers = 4 * sum(weight.at_rest(mesh) for weight in work.weights if AXIS in weight.used)
            add("collective-permute", (AXIS,), 2 * parts * rounds, layers / rounds)
    found = [Collective(kind=kind, axes=axes, count=int(n), bytes=size) for (kind, axes), (n, size) in sums.items()]
    return tuple(sorted(found, key=lambda each: -each.bytes))


def _compute_seconds(work: Work, topology: Topology, mesh: Mapping[str, int], rows: int, parts: int) -> float:
    chip = topology.chip
    stretch = work.stretch(mesh)
    products = stretch * work.executed * rows / (topology.chips * chip.bf16_flops * PRODUCTS)
    # The optimizer reads and writes parameters, gradients, moments; each pass reads weights and what it computes.
    passes = 3 + work.again
    resting = 4 * sum(weight.at_rest(mesh) for weight in work.weights)
    gathered = 2 * sum(weight.gathered(mesh) * work.turns(weight, mesh) for weight in work.weights)
    weights = (4 + 2 * work.moments) * resting + parts * passes * gathered
    activations = passes * stretch * rows * _on_chip(work.body, mesh)
    copied = 2 * work.copies * (stretch * rows * _on_chip(work.saved, mesh) + parts * _on_chip(work.kept, mesh))
    return products + (weights + activations + copied / COPIES) / chip.memory_bandwidth


def _on_chip(arrays: tuple[Split, ...], mesh: Mapping[str, int]) -> float:
    """Bytes on one device."""
    return sum(array.on_chip(mesh) for array in arrays)
