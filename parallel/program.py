"""What a compiled program says of itself: its collectives, by kind and mesh axis, and the cycles it expects to take.

Read from the text of the optimised program, because XLA's own summary counts the body of a loop once. A loop's body
counts as often as its condition says; a loop whose length is an argument counts once.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s4": 0.5, "u4": 0.5}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|calls|to_apply|called_computations|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Exchanges of one kind along the same mesh axes.

    Attributes:
        kind: one of `KINDS`.
        axes: mesh axes along which devices exchange.
        count: how often a device takes part while the program runs once.
        bytes: what a device sends over the network in them, by the best known algorithm (a ring). Of a ragged exchange
            nobody knows beforehand; it is what would fill the smaller of its two buffers, spread evenly over devices,
            and on average over devices it is hardly ever more.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program's own account.

    Attributes:
        collectives: by kind and axes, most bytes first.
        cycles: of one core of one device, without collectives and hand-written kernels; 0 where the compiler does not
            say (all but the TPU's).
        kernels: hand-written kernels in the program, which `cycles` leaves out.
    """

    collectives: tuple[Collective, ...]
    cycles: float
    kernels: int


class _Visit(NamedTuple):
    computation: str
    line: str
    times: int
    fused: bool


def read(text: str, mesh: Mesh) -> Program:
    """Reads the text of a program compiled for `mesh` (`compiled.as_text()`)."""
    cycles, kernels, seen = 0.0, 0, set()
    sums: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    computations = _computations(text)
    for computation, line, times, fused in _executed(computations):
        if not fused and (found := _CYCLES.search(line)):
            cycles += times * int(found[1])
        kernels += "tpu_custom_call" in line
        if not (found := _COLLECTIVE.search(line)):
            continue
        shape, kind, started, operands = found.groups()
        # The TPU compiler cuts one exchange into steps that it fuses with products; they share a channel. So do all
        # that are written out in `jax.shard_map`, but those stand alone.
        channel = re.search(r"channel_id=(\d+)", line) if fused else None
        if channel and channel[1] in seen:
            continue
        seen |= {channel[1]} if channel else set()
        group = _group(line, mesh.size)
        if len(group) < 2:
            continue
        size = _size(shape, last=bool(started))
        if kind == "ragged-all-to-all":
            size = min(size, _size(_shape(operands, computations[computation]), last=False))
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):  # how a TPU's program writes it
            kind, size = "reduce-scatter", size / len(group)
        sent = times * _sent(kind, size, len(group))
        total = sums.setdefault((kind, _axes(group, mesh)), [0, 0.0])
        total[0], total[1] = total[0] + times, total[1] + sent
    collectives = [
        Collective(kind=kind, axes=axes, count=int(count), bytes=sent) for (kind, axes), (count, sent) in sums.items()
    ]
    return Program(collectives=tuple(sorted(collectives, key=lambda each: -each.bytes)), cycles=cycles, kernels=kernels)


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of each computation; the entry's name is empty."""
    found, lines = {}, []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = found[head[2]] = []
            if head[1]:
                found[""] = lines
        elif line.startswith("  "):
            lines.append(line)
    return found


def _executed(computations: dict[str, list[str]]) -> Iterator[_Visit]:
    """Every line that runs, with how often, and whether it is part of a fusion."""
    waiting = [("", 1, False)]
    while waiting:
        name, times, fused = waiting.pop()
        for line in computations.get(name, ()):
            yield _Visit(name, line, times, fused)
            inside = fused or " fusion(" in line
            again = times * _trips(line, computations) if " while(" in line else times
            for several, one in _CALLED.findall(line):
                if "to_apply=" in line and " call(" not in line:
                    continue  # what a reduction does to two numbers
                names = [each.strip().lstrip("%") for each in several.split(",")] if several else [one]
                waiting += [(each, again, inside) for each in names]


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop's body runs: what its text says, or the constant that its counter is compared with."""
    if known := re.search(r'known_trip_count":?\{"n":"(\d+)"', line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = computations.get(condition[1], ()) if condition else ()
    root = next((each for each in lines if each.lstrip().startswith("ROOT")), "")
    written = (re.search(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", each) for each in lines)
    constants = {found[1]: int(found[2]) for found in written if found}
    named = [constants[name] for name in re.findall(r"%([\w.\-]+)", root) if name in constants]
    return named[0] if named and "direction=LT" in root else 1


def _shape(operands: str, lines: list[str]) -> str:
    """The shape of the first operand, which its own line says."""
    name = re.search(r"%([\w.\-]+)", operands)[1]
    said = re.compile(rf"\s+%{re.escape(name)} = (.*?) [\w\-]+\(")
    return next(found[1] for line in lines if (found := said.match(line)))


def _size(shape: str, *, last: bool) -> float:
    """Bytes of a result; of an exchange that was only started, its last array, the others being what goes in."""
    sizes = [
        math.prod(map(int, filter(None, dims.split(",")))) * _BYTES.get(kind, _width(kind))
        for kind, dims in _SHAPE.findall(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape))
    ]
    return (max(sizes) if last else sum(sizes)) if sizes else 0.0


def _width(kind: str) -> float:
    digits = re.sub(r"\D", "", kind.split("e")[0])
    return int(digits) / 8 if digits else 4


def _sent(kind: str, result: float, devices: int) -> float:
    """Bytes a device sends, of a result of so many bytes on it."""
    share = (devices - 1) / devices
    return {
        "all-gather": share * result,
        "all-reduce": 2 * share * result,
        "reduce-scatter": share * result * devices,
        "all-to-all": share * result,
        "ragged-all-to-all": share * result,
        "collective-permute": result,
    }[kind]


def _group(line: str, devices: int) -> Int[np.ndarray, " group"]:
    """Places in the mesh of the devices that exchange with the first one (and of itself)."""
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]+\})\}", line):
        both = (each.split(",") for each in re.findall(r"\d+,\d+", pairs[1]))
        return next((np.array(pair, int) for pair in both if pair[0] != pair[1]), np.zeros(1, int))  # some stay at home
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return np.array(listed[1].split(","), int)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[.*?\](?:T\([\d,]+\))?)", line):
        return _iota(iota[2]).reshape(list(map(int, iota[1].split(","))))[0]
    if named := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))?\s*\{(.*?)\}", line
    ):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        shape, kept = [], []
        for axis, size in sizes.items():  # a part of an axis is written 'axis':(what lies before)size
            if part := re.search(rf"'{re.escape(axis)}':\((\d+)\)(\d+)", named[3]):
                before, inside = int(part[1]), int(part[2])
                shape += [before, inside, size // (before * inside)]
                kept += [False, True, False]
            else:
                shape, kept = [*shape, size], [*kept, f"'{axis}'" in named[3]]
        places = _iota(named[2] or f"[{math.prod(shape)}]").reshape(shape)
        return places[tuple(slice(None) if keep else 0 for keep in kept)].reshape(-1)
    return np.arange(devices)


def _iota(text: str) -> Int[np.ndarray, " devices"]:
    """Devices in the order that "[2,4]T(1,0)" says: counted up in that shape, transposed; or a list of them."""
    if listed := re.fullmatch(r"\d[\d,]*", text):
        return np.array(listed[0].split(","), int)
    dims, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    dims, order = (list(map(int, part.split(","))) if part else None for part in (dims, order))
    return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(-1)


def _axes(group: Int[np.ndarray, " group"], mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ."""
    coordinates = np.unravel_index(group, tuple(mesh.shape.values()))
    return tuple(name for name, along in zip(mesh.shape, coordinates, strict=True) if len(set(along)) > 1)
