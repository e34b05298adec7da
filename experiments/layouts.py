"""Where a run could be computed: what its step does in numbers, which layouts there are, which suits a topology."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from experiments.ahead import compile_step, residuals
from experiments.placement import Layout
from experiments.runs import Run
from models.config import NormPlacement, Stack
from models.execution import Execution, Kernel, Layers, Remat
from models.kernels import misfit
from models.pair import Pair
from models.transformer import AnyArchitecture, declare
from parallel.analytic import Exchange, Split, Weight, Work, predict
from parallel.context import Context
from parallel.estimate import Estimate
from parallel.mesh import AXES, MeshShape
from parallel.search import Found, meshes, search
from parallel.sharding import Rules, is_variable, shardings
from parallel.topology import Topology

SEARCHED = ("data", "fsdp", "tensor")
"""Mesh axes that are searched over; and `sequence`, where there are fewer rows than chips."""

_TRACED = 2  # devices along each axis of the mesh that a step is traced for: it is enough to see what is split


@dataclass(frozen=True)
class Layouts:
    """A run's step on a topology, in any layout.

    Attributes:
        run: the run.
        topology: where.
        layout: what all layouts share: kernel, chunks of logits.
    """

    run: Run
    topology: Topology
    layout: Layout
    _compiled: dict[Layout, Estimate] = field(default_factory=dict, compare=False, repr=False)
    _works: dict[tuple, Work] = field(default_factory=dict, compare=False, repr=False)
    _traces: dict[tuple, list["_Residual"]] = field(default_factory=dict, compare=False, repr=False)

    def predict(self, layout: Layout) -> Estimate:
        """What arithmetic says of a layout.

        Raises:
            ValueError: if mesh, batch or architecture do not fit each other.
        """
        sizes = self._sizes(layout)
        work = self._work(layout, sizes)
        if lacking := next(filter(None, (weight.misfit(sizes) for weight in work.weights)), ""):
            raise ValueError(f"mesh {layout.mesh}: {lacking}")
        told = dict(topology=self.topology, mesh=sizes, rows=self.run.batch, parts=layout.accumulate)
        return predict(work, **told)

    def compile(self, layout: Layout) -> Estimate:
        """What the compiler says of it, asked once; of GPUs elsewhere arithmetic says it.

        A GPU's compiler counts no cycles: how long it computes is then by arithmetic too.
        """
        if not self.topology.present:
            return self.predict(layout)
        if layout not in self._compiled:
            said = compile_step(self.run, layout, self.topology)
            if self.topology.platform == "gpu" and said.memory:
                said = replace(said, compute_seconds=self.predict(layout).compute_seconds)
            self._compiled[layout] = said
        return self._compiled[layout]

    def all(self, remats: Sequence[Remat] = tuple(Remat)) -> Iterator[Layout]:
        """Every mesh that the batch and the architecture allow, with every policy and number of parts.

        Raises:
            ValueError: if there is none.
        """
        found, refused = False, ""
        few = self.run.batch < self.topology.chips
        for sizes in meshes(self.topology.chips, (*SEARCHED, "sequence") if few else SEARCHED):
            readers = sizes["data"] * sizes["fsdp"]
            if self.run.batch % readers:
                continue
            layout = replace(self.layout, mesh=str(MeshShape(**sizes)))
            try:
                self.predict(replace(layout, accumulate=1, remat=remats[-1]))
            except ValueError as reason:
                refused = f": {reason}"
                continue
            found = True
            for remat in remats:
                parts = 1
                while self.run.batch % (parts * readers) == 0:
                    yield replace(layout, accumulate=parts, remat=remat)
                    parts *= 2
        if not found:
            raise ValueError(f"no mesh of {self.topology.chips} chips suits {self.run.batch} rows{refused}")

    def search(
        self, *, compiled: int, limit: float | None = None, report: Callable[[Layout], None] = lambda layout: None
    ) -> Found[Layout]:
        """The fastest layout that fits.

        Args:
            compiled: how many of those that fit to ask the compiler about.
            limit: bytes to use on a chip; None for all that it has.
            report: told what is compiled next.

        Raises:
            ValueError: if no mesh suits the batch and the architecture.
        """
        if limit is None and self.topology.platform != "cpu":
            limit = self.topology.chip.memory_bytes
        told = dict(limit=limit, most=compiled if self.topology.present else 0, report=report)
        return search(
            self.all(),
            self.predict,
            self.compile,
            key=lambda each: (each.mesh, each.remat),
            kind=lambda each: each.remat,
            **told,
        )

    def _sizes(self, layout: Layout) -> dict[str, int]:
        shape = MeshShape.parse(layout.mesh).resolve(self.topology.chips)
        return {name: getattr(shape, name) for name in AXES}

    def _work(self, layout: Layout, sizes: Mapping[str, int]) -> Work:
        """What the step does in numbers, which are those of any mesh with the same axes."""
        execution = layout.execution(self.run, _mesh(sizes), platform=self.topology.platform)
        readers = execution.rules.batch
        mesh = _mesh({name: _TRACED if size > 1 or name in readers else 1 for name, size in sizes.items()})
        if (execution, mesh) not in self._works:
            kinds = (execution.remat, Remat.NONE, Remat.DOTS)
            found = (self._saved(replace(execution, remat=each), mesh) for each in kinds)
            self._works[execution, mesh] = _work(self.run, execution, *found)
        return self._works[execution, mesh]

    def _stand_in(self) -> Kernel:
        """What is traced for cuDNN's kernel, which JAX traces beside GPUs only: splash saves the same."""
        lengths = self.run.objective.lengths(self.run.data.length)
        fits = not any(misfit(Kernel.SPLASH, each, *lengths) for each in self.run.architecture.attentions)
        return Kernel.SPLASH if fits else Kernel.BLOCKS

    def _saved(self, execution: Execution, mesh: AbstractMesh) -> list["_Residual"]:
        execution = replace(execution, layers=Layers.SCAN)  # what is saved of each layer is then told from the rest
        if execution.kernel is Kernel.CUDNN and not self.topology.present:
            execution = replace(execution, kernel=self._stand_in())
        if (execution, mesh) not in self._traces:
            run = replace(self.run, architecture=_told_apart(self.run.architecture))
            self._traces[execution, mesh] = _residuals(run, execution, mesh)
        return self._traces[execution, mesh]


def _mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes))


def _told_apart(architecture: AnyArchitecture) -> AnyArchitecture:
    """An encoder-decoder with as many layers on either side gets one more, so that arrays tell which side they are of.

    Arrays of a loop's layers have their number as first axis.
    """
    repeats = [stack.repeats for stack in architecture.stacks]
    if isinstance(architecture, Pair) or len(set(repeats)) == len(repeats):
        return architecture
    return replace(architecture, encoder=replace(architecture.encoder, repeats=repeats[0] + 1))


@dataclass(frozen=True)
class _Residual:
    """An array that the forward pass saves: its first axis, and the rest in numbers; of a row, if it is of rows."""

    first: int
    split: Split
    of_rows: bool
    dtype: jnp.dtype


def _work(
    run: Run, execution: Execution, saved: list[_Residual], everything: list[_Residual], products: list[_Residual]
) -> Work:
    """What a step does, by what its forward pass saves, and would save of everything, or of products with weights."""
    rules, architecture, cost = execution.rules, run.architecture, run.cost
    model = declare(architecture, execution=execution)
    state = jax.eval_shape(run.optimizer.transform().init, model)
    stacks = {
        told.repeats: stack.repeats
        for told, stack in zip(_told_apart(architecture).stacks, architecture.stacks, strict=True)
    }

    def of_blocks(found: list[_Residual]) -> tuple[Split, ...]:
        blocks = ((each, stacks[each.first]) for each in found if each.of_rows and each.first in stacks)
        return tuple(Split(each.split.bytes / each.first * repeats, each.split.axes) for each, repeats in blocks)

    def of_one_block(found: list[_Residual], first: int) -> tuple[Split, ...]:
        # What is not of the type that products read is made where it is read, and not in memory within a block.
        written = (each for each in found if each.of_rows and each.first == first and each.dtype == execution.dtype)
        return tuple(Split(each.split.bytes / first, each.split.axes) for each in written)

    # One block runs at a time: that of the side with the larger ones. Products of experts are not among `products`.
    told = everything if architecture.routed else products
    largest = max(stacks, key=lambda first: sum(each.bytes for each in of_one_block(told, first)))
    fused = execution.kernel in (Kernel.SPLASH, Kernel.CUDNN)
    *_, read = run.places
    words = [side.vocab for side in _sides(architecture) if side.head]
    asked = run.asked or read
    logits = 4.0 * min(asked, execution.logits_chunk or asked) * sum(words)
    again = execution.remat is not Remat.NONE
    return Work(
        weights=tuple(_weights(model, rules)),
        moments=_bytes(state) / _bytes(model),
        saved=of_blocks(saved),
        kept=tuple(each.split for each in saved if not each.of_rows),
        block=of_one_block(told, largest),
        scores=() if fused else tuple(_scores(run, execution, architecture.stacks[list(stacks).index(largest)])),
        saved_block=of_one_block(saved, largest),
        body=of_blocks(everything),
        logits=Split(logits, _axes(rules, "batch", "length", "vocab")),
        readers=_axes(rules, "batch", "length"),
        exchanges=tuple(_exchanges(run, execution)),
        flops=cost.flops_per_token * sum(run.places),
        executed=_executed(run, execution),
        again=int(again),
        copies=2 * (execution.layers is Layers.SCAN),
    )


def _scores(run: Run, execution: Execution, stack: Stack) -> Iterator[Split]:
    """Of queries and keys, as the products with values read them, in one block of a stack."""
    length = max(run.places)
    axes = _axes(execution.rules, "batch", "kv_heads", "groups")
    for mixer in (part for block in stack.pattern[:1] for part in (block.mixer, block.cross) if part):
        yield Split(float(execution.dtype.itemsize * mixer.heads * length**2), axes)


def _sides(architecture):
    return getattr(architecture, "sides", (architecture,))


def _axes(rules: Rules, *logical: str) -> tuple[str, ...]:
    return tuple(axis for name in logical for axis in rules.axes(name))


def _bytes(tree) -> float:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _weights(model, rules: Rules) -> Iterator[Weight]:
    for path, param in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_variable):
        axes = param.get_metadata("axes")
        resting = rules.resting_spec(*axes)
        yield Weight(
            name=f"parameter {jax.tree_util.keystr(path)}",
            shape=tuple(param.shape),
            resting=tuple(each if isinstance(each, tuple) else (each,) if each else () for each in resting),
            used=_axes(rules, *axes),
            layers=param.shape[0] if axes[0] == "layers" else 1,
        )


def _exchanges(run: Run, execution: Execution) -> Iterator[Exchange]:
    """What devices that share rows tell each other in all layers.

    Layers computed again do so once more, but for a sum that they end with and nothing asks for.
    """
    rules, architecture = execution.rules, run.architecture
    if rules.length and execution.context is Context.RING:
        raise ValueError("what a ring exchanges is for the compiler to say, not for arithmetic")
    size, again = float(max(run.places) * execution.dtype.itemsize), execution.remat is not Remat.NONE
    stream, summed = Split(size * architecture.width, _axes(rules, "batch", "length")), rules.hidden
    uses = [each for stack in architecture.stacks for each in zip(stack.pattern, stack.uses, strict=True)]
    sums = 1 + sum(times * block.branches for block, times in uses) * (2 + again)
    sums -= again * sum(stack.repeats for stack in architecture.stacks if _ends_bare(stack))
    if rules.stream == rules.length:
        yield Exchange(kind="all-reduce", axes=summed, count=sums, array=stream)
    else:  # the stream rests in parts: each sum is scattered, and gathered where the next layer begins
        gathers = sum(times * block.branches for block, times in uses) * (2 + again)
        yield Exchange(kind="all-gather", axes=summed, count=gathers, array=stream)
        yield Exchange(kind="reduce-scatter", axes=summed, count=sums, array=stream)
    for block, times in uses:  # queries and what comes of them, keys and values: there and back, in both directions
        for part in (each for each in (block.mixer, block.cross) if each and rules.length):
            for heads in (part.heads, part.kv_heads):
                array = Split(size * heads * part.head_dim, _axes(rules, "batch", "length", "kv_heads", "groups"))
                yield Exchange(kind="all-to-all", axes=rules.length, count=2 * (2 + again) * times, array=array)


def _executed(run: Run, execution: Execution) -> float:
    """Products of a row, those computed again included.

    A fused kernel's backward pass takes five products for the forward pass's two (Dao et al. 2022, appendix B).
    """
    cost, tokens, asked = run.cost, sum(run.places), run.asked or run.places[-1]
    heads = (side for side in _sides(run.architecture) if side.head)
    head = asked * sum(side.head.cost(side.vocab, side.width, side.table_size).matmul_flops for side in heads)
    products, attention = cost.matmul_flops * tokens, cost.attention_flops * tokens
    fused = execution.kernel in (Kernel.SPLASH, Kernel.CUDNN)
    again = {
        Remat.NONE: 0.0,
        Remat.DOTS: attention,
        Remat.ATTENTION: products - head - _last(run),
        Remat.FULL: products - head - _last(run) + attention,
    }[execution.remat]
    chunked = execution.logits_chunk is not None and execution.logits_chunk < asked
    return 3 * products + (3.5 if fused else 3.0) * attention + again + (head if chunked else 0.0)


def _ends_bare(stack: Stack) -> bool:
    """Whether only the residual stream takes what a repeat ends with: no gradient asks for its value again."""
    return stack.pattern[-1].placement is NormPlacement.PRE


def _last(run: Run) -> float:
    """Products of a row that repeats of a stack end with, and that are not computed again."""
    sides = [(side.width, stack) for side in _sides(run.architecture) for stack in side.stacks]
    found = 0.0
    for (width, stack), places in zip(sides, run.places, strict=True):
        part = stack.pattern[-1].feedforward
        found += _ends_bare(stack) * 2.0 * width * part.hidden * getattr(part, "chosen", 1) * stack.repeats * places
    return found


def _residuals(run: Run, execution: Execution, mesh: AbstractMesh) -> list[_Residual]:
    """What the forward pass saves of one row, seen on a small mesh that is not there."""
    rules, readers = execution.rules, execution.rules.shards("batch", mesh)
    model = declare(run.architecture, execution=execution)
    model = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        model, shardings(model, mesh, rules),
    )  # fmt: skip
    shape, spec = (readers, run.data.length + 1), rules.spec("batch", None)
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, spec))
    found = []
    with jax.sharding.use_abstract_mesh(mesh):
        leaves = residuals(run, model, rows, jax.eval_shape(lambda: jax.random.key(0)))
    for leaf in leaves:
        spec = leaf.sharding.spec if leaf.sharding is not None else ()
        axes = tuple(axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis)
        # Parameters are never split over `data`: what is, is of rows.
        of_rows, size = "data" in axes, float(math.prod(leaf.shape) * leaf.dtype.itemsize)
        first = 0 if not leaf.shape or (spec and spec[0]) else leaf.shape[0]
        found.append(_Residual(first, Split(size / readers if of_rows else size, axes), of_rows, leaf.dtype))
    return found
