"""What a run's step does in numbers: read off the run, and off traces of its forward pass on a small mesh."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import jax
from jax.sharding import AbstractMesh

from experiments.runs import Run
from experiments.traces import Residual, abstract_mesh, saved_of_a_row, told_apart
from models.config import Architecture, Block, NormPlacement, Stack
from models.execution import Dispatch, Execution, Kernel, Layers, Remat
from models.experts import Experts
from models.pair import Pair
from models.transformer import AnyArchitecture, declare
from parallel.analytic import Exchange, Split, Weight, Work
from parallel.context import Context
from parallel.sharding import Rules, is_variable

_ROOM = 1.25  # runs of a block over those of a device on average (`parallel.dispatch`)
_LANES = 128  # numbers in a line of a TPU's memory
_TRACED = 2  # devices along each axis of the mesh that a step is traced for: it is enough to see what is split


@dataclass(frozen=True)
class Numbers:
    """A run's step in numbers, each asked once.

    Attributes:
        run: the run.
        fused: what is traced for a kernel that cannot be traced here; None where all can.
    """

    run: Run
    fused: Kernel | None = None
    _works: dict[tuple, Work] = field(default_factory=dict, compare=False, repr=False)
    _traces: dict[tuple, list[Residual]] = field(default_factory=dict, compare=False, repr=False)
    _weights: dict[Execution, tuple[tuple[Weight, ...], float]] = field(default_factory=dict, compare=False, repr=False)

    def work(self, execution: Execution, sizes: Mapping[str, int]) -> Work:
        """What the step does, in numbers which are those of any mesh with the same axes, shards of experts and stages.

        Args:
            execution: how it is computed.
            sizes: of the mesh's axes.
        """
        readers = execution.rules.batch
        traced = {name: _TRACED if size > 1 or name in readers else 1 for name, size in sizes.items()}
        mesh = abstract_mesh(traced | {"pipeline": 1})  # what one stage saves follows from what all layers save
        key = (execution, mesh, sizes["expert"], sizes["pipeline"])
        if key not in self._works:
            alike = _without_experts(self.run, execution, sizes["expert"])
            everything, products = (self._saved(alike, execution, remat, mesh) for remat in (Remat.NONE, Remat.DOTS))
            saved = everything
            if execution.remat is not Remat.NONE:
                saved = self._saved(self.run.architecture, execution, execution.remat, mesh)
            held = self._held(replace(execution, remat=Remat.NONE, pipeline=None))
            self._works[key] = _work(self.run, execution, sizes, held, saved, everything, products)
        return self._works[key]

    def _held(self, execution: Execution) -> tuple[tuple[Weight, ...], float]:
        """The parameters, and bytes of the optimizer's state for each byte of theirs."""
        if execution not in self._weights:
            model = declare(self.run.architecture, execution=execution)
            state = jax.eval_shape(self.run.optimizer.transform().init, model)
            self._weights[execution] = tuple(_weights(model, execution.rules)), _bytes(state) / _bytes(model)
        return self._weights[execution]

    def _saved(
        self, architecture: AnyArchitecture, execution: Execution, remat: Remat, mesh: AbstractMesh
    ) -> list[Residual]:
        # Where layers are looped over, what is saved of each is told from the rest.
        rules = replace(execution.rules, layers=())
        execution = replace(execution, rules=rules, remat=remat, layers=Layers.SCAN, pipeline=None)
        if execution.kernel is Kernel.CUDNN and self.fused:
            execution = replace(execution, kernel=self.fused)
        key = (architecture, execution, mesh)
        if key not in self._traces:
            self._traces[key] = saved_of_a_row(
                replace(self.run, architecture=told_apart(architecture)), execution, mesh
            )
        return self._traces[key]


def _without_experts(run: Run, execution: Execution, shards: int) -> AnyArchitecture:
    """The architecture with a wide MLP in place of experts: as many hidden units as a device makes for each token.

    A trace shows neither what is of rows among what experts compute, nor that it grows with their shards.
    """

    def alike(block: Block) -> Block:
        part = block.feedforward
        if not isinstance(part, Experts):
            return block
        hidden = _TRACED * round(_made(part, execution, max(run.places), shards) * part.hidden / _TRACED)
        return replace(block, feedforward=replace(part.mlp, hidden=hidden))

    return _with_blocks(run.architecture, alike)


def _with_blocks(architecture: AnyArchitecture, change: Callable[[Block], Block]) -> AnyArchitecture:
    """The architecture with every block changed."""
    if isinstance(architecture, Pair):
        sides = {name: side for name, side in vars(architecture).items() if isinstance(side, Architecture)}
        return replace(architecture, **{name: _with_blocks(side, change) for name, side in sides.items()})
    stacks = {name: getattr(architecture, name) for name in ("encoder", "decoder")}
    changed = {
        name: replace(stack, pattern=tuple(map(change, stack.pattern))) for name, stack in stacks.items() if stack
    }
    return replace(architecture, **changed)


def _made(part: Experts, execution: Execution, length: int, shards: int) -> float:
    """Places of experts that a device makes room for at a time, for each token that it has."""
    return {
        Dispatch.DENSE: part.count,
        Dispatch.BUFFERS: part.count * part.seats(length) / length,
    }.get(_dispatch(part, execution), part.chosen * (_ROOM if shards > 1 else 1))


def _dispatch(part: Experts, execution: Execution) -> Dispatch:
    return execution.dispatch or (Dispatch.DENSE if part.capacity is None else Dispatch.BUFFERS)


def _work(
    run: Run,
    execution: Execution,
    sizes: Mapping[str, int],
    held: tuple[tuple[Weight, ...], float],
    saved: list[Residual],
    everything: list[Residual],
    products: list[Residual],
) -> Work:
    """What a step does, by what its forward pass saves, and would save of everything, or of products with weights."""
    rules, architecture, cost, shards = execution.rules, run.architecture, run.cost, sizes["expert"]
    stacks = {
        told.repeats: stack.repeats
        for told, stack in zip(told_apart(architecture).stacks, architecture.stacks, strict=True)
    }

    def of_blocks(found: list[Residual]) -> tuple[Split, ...]:
        blocks = ((each, stacks[each.first]) for each in found if each.of_rows and each.first in stacks)
        return tuple(
            Split(each.split.bytes / each.first * repeats, tuple(dict.fromkeys((*each.split.axes, *rules.layers))))
            for each, repeats in blocks
        )

    def of_one(found: list[Residual], first: int) -> tuple[Split, ...]:
        # What is not of the type that products read is made where it is read, and not in memory meanwhile.
        written = (each for each in found if each.of_rows and each.first == first and each.dtype == execution.dtype)
        return tuple(Split(each.split.bytes / first, each.split.axes) for each in written)

    # One repeat runs at a time: that of the side with the larger ones.
    largest = max(stacks, key=lambda first: sum(each.bytes for each in of_one(products, first)))
    stack = architecture.stacks[list(stacks).index(largest)]
    fused = execution.kernel in (Kernel.SPLASH, Kernel.CUDNN)
    *_, read = run.places
    words = [side.vocab for side in _sides(architecture) if side.head]
    asked = run.asked or read
    logits = 4.0 * min(asked, execution.logits_chunk or asked) * sum(words)
    again = execution.remat is not Remat.NONE
    kept = tuple(each.split for each in saved if not each.of_rows)
    if architecture.routed and not again:  # the weights of all experts, which what stands in for them has not
        looped = (weight for weight in held[0] if weight.layers > 1)
        kept = tuple(Split(float(execution.dtype.itemsize * weight.size), weight.used) for weight in looped)
    return Work(
        weights=held[0],
        moments=held[1],
        saved=of_blocks(saved),
        kept=kept,
        repeat=(*of_one(products, largest), *_statistics(run, execution, stack), *_sent(run, execution, stack, shards)),
        blocks=stack.period,
        scores=() if fused else tuple(_scores(run, execution, stack)),
        stacks=len(of_one(saved, largest)),
        body=of_blocks(everything),
        logits=Split(logits, _axes(rules, "batch", "length", "vocab")),
        readers=_axes(rules, "batch", "length"),
        exchanges=tuple(_exchanges(run, execution, shards)),
        flops=cost.flops_per_token * sum(run.places),
        executed=_executed(run, execution),
        again=int(again),
        stream=Split(_row(run, execution) * architecture.width, _axes(rules, "batch", "stream")),
        copies=2 * (execution.layers is Layers.SCAN),
        pipeline=execution.pipeline,
    )


def _scores(run: Run, execution: Execution, stack: Stack) -> Iterator[Split]:
    """Of queries and keys, as the products with values read them, in one block of a stack."""
    length = max(run.places)
    axes = _axes(execution.rules, "batch", "kv_heads", "groups")
    for mixer in (part for block in stack.pattern[:1] for part in (block.mixer, block.cross) if part):
        yield Split(float(execution.dtype.itemsize * mixer.heads * length**2), axes)


def _row(run: Run, execution: Execution) -> float:
    """Bytes of one activation of each place of a row."""
    return float(max(run.places) * execution.dtype.itemsize)


def _statistics(run: Run, execution: Execution, stack: Stack) -> Iterator[Split]:
    """What splash tells its backward pass of each query of a repeat: one number, in memory a whole line of a TPU's."""
    for mixer in (part for block in stack.pattern for part in (block.mixer, block.cross) if part):
        if execution.kernel is Kernel.SPLASH:
            axes = _axes(execution.rules, "batch", "length", "kv_heads", "groups")
            yield Split(4.0 * _LANES * mixer.heads * max(run.places), axes)


def _sent(run: Run, execution: Execution, stack: Stack, shards: int) -> Iterator[Split]:
    """What experts of a repeat of a stack are sent, and send back: it is wider than the residual stream."""
    size, axes = _row(run, execution), _axes(execution.rules, "batch", "length")
    for part in (block.feedforward for block in stack.pattern if isinstance(block.feedforward, Experts)):
        places = _made(part, execution, max(run.places), shards)
        if shards > 1 and _dispatch(part, execution) is not Dispatch.BUFFERS:
            places += shards  # rows of all devices that share experts, and sums for them
        yield Split(2 * size * places * run.architecture.width, axes)


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


def _exchanges(run: Run, execution: Execution, shards: int) -> Iterator[Exchange]:
    """What devices that share rows tell each other in all layers.

    Layers computed again do so once more, but for a sum that they end with and nothing asks for.
    """
    rules, architecture = execution.rules, run.architecture
    if rules.length and execution.context is Context.RING:
        raise ValueError("what a ring exchanges is for the compiler to say, not for arithmetic")
    size, again = _row(run, execution), execution.remat is not Remat.NONE
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
        if rules.expert and isinstance(block.feedforward, Experts):
            yield from _of_experts(run, execution, block.feedforward, shards, times)


def _of_experts(run: Run, execution: Execution, part: Experts, shards: int, times: int) -> Iterator[Exchange]:
    """What devices that share the experts of some blocks send each other: there and back, forward, again and back."""
    rules, length, dispatch = execution.rules, max(run.places), _dispatch(part, execution)
    size = _row(run, execution) * run.architecture.width
    again = execution.remat is not Remat.NONE
    if dispatch in (Dispatch.DENSE, Dispatch.RAGGED):  # every row comes to every device, and sums go back
        others = tuple(name for name in _axes(rules, "batch", "length") if name not in rules.expert)
        yield Exchange(kind="all-gather", axes=rules.expert, count=(2 + again) * times, array=Split(size, others))
        yield Exchange(kind="reduce-scatter", axes=rules.expert, count=2 * times, array=Split(size, others))
        return
    if dispatch is Dispatch.BUFFERS:  # seats are of whole rows
        kind, count, axes = "all-to-all", 2 * (2 + again), _axes(rules, "batch")
        places = part.count * part.seats(length) / length
    else:  # to each device at most once, if experts are used alike; what comes back is a sum
        held = part.count // shards
        missed = math.comb(part.count - held, part.chosen) / math.comb(part.count, part.chosen)
        kind, count, axes = "ragged-all-to-all", 2 * 2 + again, _axes(rules, "batch", "length")
        places = shards * (1 - missed)
    yield Exchange(kind=kind, axes=rules.expert, count=count * times, array=Split(size * places, axes))


def _executed(run: Run, execution: Execution) -> float:
    """Products of a row, those computed again included.

    A fused kernel's backward pass takes five products for the forward pass's two (Dao et al. 2022, appendix B).
    """
    cost, tokens, asked = run.cost, sum(run.places), run.asked or run.places[-1]
    heads = (side for side in _sides(run.architecture) if side.head)
    head = asked * sum(side.head.cost(side.vocab, side.width, side.table_size).matmul_flops for side in heads)
    needed, computed = _of_all_experts(run, execution)
    products, attention = cost.matmul_flops * tokens - needed + computed, cost.attention_flops * tokens
    fused = execution.kernel in (Kernel.SPLASH, Kernel.CUDNN)
    again = {
        Remat.NONE: 0.0,
        Remat.DOTS: attention + computed,
        Remat.ATTENTION: products - head - _last(run),
        Remat.FULL: products - head - _last(run) + attention,
    }[execution.remat]
    chunked = execution.logits_chunk is not None and execution.logits_chunk < asked
    return 3 * products + (3.5 if fused else 3.0) * attention + again + (head if chunked else 0.0)


def _of_all_experts(run: Run, execution: Execution) -> tuple[float, float]:
    """Forward products of a row by experts that its tokens are sent to; and those computed, of empty seats and all."""
    needed = computed = 0.0
    for width, stack, places in _stacks(run):
        for block, times in zip(stack.pattern, stack.uses, strict=True):
            part = block.feedforward
            if isinstance(part, Experts):
                one = part.mlp.cost(width, places).matmul_flops * places * times
                made = _made(part, execution, places, 1)
                needed, computed = needed + one * part.chosen, computed + one * made
    return needed, computed


def _stacks(run: Run) -> Iterator[tuple[int, Stack, int]]:
    """Width of each stack, the stack, and places of a row in it."""
    stacks = [(side.width, stack) for side in _sides(run.architecture) for stack in side.stacks]
    for (width, stack), places in zip(stacks, run.places, strict=True):
        yield width, stack, places


def _ends_bare(stack: Stack) -> bool:
    """Whether only the residual stream takes what a repeat ends with: no gradient asks for its value again."""
    return stack.pattern[-1].placement is NormPlacement.PRE


def _last(run: Run) -> float:
    """Products of a row that repeats of a stack end with, and that are not computed again.

    Those of experts are: the gradient of a token's shares in them asks for their values.
    """
    found = 0.0
    for width, stack, places in _stacks(run):
        part = stack.pattern[-1].feedforward
        if _ends_bare(stack) and not isinstance(part, Experts):
            found += 2.0 * width * part.hidden * stack.repeats * places
    return found
