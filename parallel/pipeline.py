"""Pipelines: layers in stages along a mesh axis, a batch in microbatches that follow one another through them.

At each tick every stage computes one microbatch through one piece of its layers, and hands it to the next stage; the
last hands to the first. A microbatch goes round once (GPipe, Huang et al. 2019), or several times, through a shorter
piece of layers each (interleaved, Narayanan et al. 2021): then stages fill and drain in ticks that are as many times
shorter. The backward pass is the transpose of the forward one: the same schedule from its end.

Everything else of the mesh goes on inside a stage as it does without one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, get_abstract_mesh, reshard
from jaxtyping import Array, Float, Int

AXIS = "pipeline"
IDLE = -1


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How a batch goes through stages.

    Attributes:
        microbatches: equal parts of a batch.
        rounds: how often each goes through all stages; each stage has as many pieces of consecutive layers.
    """

    microbatches: int
    rounds: int = 1

    def __post_init__(self):
        if self.microbatches < 1 or self.rounds < 1:
            raise ValueError(f"pipeline: {self.microbatches} microbatches in {self.rounds} rounds make no sense")

    @classmethod
    def fitting(cls, rows: int, stages: int, rounds: int = 1) -> "Pipeline":
        """The one of most microbatches that `rows` on each device can be cut into, up to four for each stage.

        Raises:
            ValueError: if rows are too few for several rounds.
        """
        step = stages if rounds > 1 else 1
        sizes = [size for size in range(step, 4 * stages + 1, step) if rows % size == 0]
        if not sizes:
            raise ValueError(
                f"pipeline: {rows} rows a device are no multiple of {stages} stages, as {rounds} rounds want"
            )
        return cls(microbatches=sizes[-1], rounds=rounds)

    def check(self, *, stages: int, layers: int, rows: int) -> None:
        """Raises ValueError unless layers divide into pieces, rows into microbatches and these over the stages."""
        if layers % (stages * self.rounds):
            pieces = f"{stages} stages" + (f" x {self.rounds} rounds" if self.rounds > 1 else "")
            raise ValueError(f"pipeline: {layers} layers cannot be shared equally by {pieces}")
        if rows % self.microbatches:
            raise ValueError(
                f"pipeline: {rows} rows a device cannot be cut into {self.microbatches} equal microbatches"
            )
        if self.rounds > 1 and self.microbatches % stages:
            raise ValueError(
                f"pipeline: in several rounds microbatches go in groups of {stages}, one for each stage; "
                f"{self.microbatches} are no multiple"
            )

    def schedule(self, stages: int) -> tuple[Int[np.ndarray, "ticks stages"], Int[np.ndarray, "ticks stages"]]:
        """The microbatch of each stage at each tick, or `IDLE`; and the round that it is in.

        Groups of as many microbatches as stages go all their rounds before the next group: then the first stage is
        handed a microbatch by the last just when it is to go on with it.
        """
        ticks = self.rounds * self.microbatches + stages - 1
        turn = np.arange(ticks)[:, None] - np.arange(stages)[None, :]
        group, inside = np.divmod(turn, self.rounds * stages)
        rounds, place = np.divmod(inside, stages)
        busy = (turn >= 0) & (turn < self.rounds * self.microbatches)
        return np.where(busy, group * stages + place, IDLE), np.where(busy, rounds, 0)

    def bubble(self, stages: int) -> float:
        """Share of its time that a stage is idle, counted in the schedule."""
        return float((self.schedule(stages)[0] == IDLE).mean())


def stages() -> int:
    """Devices along the axis, in the mesh of the context."""
    return get_abstract_mesh().shape.get(AXIS, 1)


Piece = Callable[..., tuple[Float[Array, "rows ..."], Float[Array, ""]]]


def pipelined(
    piece: Piece,
    layers: Any,
    x: Float[Array, "batch ..."],
    along: Any,
    shared: Any,
    *,
    pipeline: Pipeline,
) -> tuple[Float[Array, "batch ..."], Float[Array, ""]]:
    """`x` through all layers, and the mean over microbatches of the sum of what pieces of layers say besides.

    Args:
        piece: what some layers do: `piece(layers, x, along, shared, microbatch)`, where the last is the number of the
            microbatch, gives the next `x`, and a number.
        layers: tree of arrays with a leading axis of all layers, sharded over the stages.
        x: what goes through; a microbatch is every so manyth row, so that each device has some of all.
        along: tree of other arrays with rows, each microbatch with its own.
        shared: tree of arrays that are the same for all.
        pipeline: the schedule.

    Raises:
        ValueError: if layers or rows do not divide.
    """
    count, (microbatches, rounds) = stages(), (pipeline.microbatches, pipeline.rounds)
    depth = jax.tree.leaves(layers)[0].shape[0]
    pipeline.check(stages=count, layers=depth, rows=_rows_here(x))
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    # What a stage does of its own is in `shard_map`, and what it computes under `vmap` over stages: there may be other
    # `shard_map`s in it, and JAX (0.10) cannot differentiate one inside another. All says how it is laid out over the
    # other axes too: XLA would gather it over axes that nothing is said of.
    own = _own(layers, rounds)
    parted = jax.tree.map(lambda rows: _parted(rows, microbatches), (x, along))
    one_of = lambda spec: PartitionSpec(AXIS, spec[0], *spec[2:])  # noqa: E731
    fresh_spec, others_spec = jax.tree.map(one_of, _specs(parted))
    schedule = tuple(jnp.asarray(table, jnp.int32) for table in pipeline.schedule(count))

    def taken_up(handed, parted, numbers, turns):
        stage = jax.lax.axis_index(AXIS)
        number, turn = jnp.maximum(numbers[stage], 0), turns[stage]
        fresh, others = jax.tree.map(lambda rows: _at(rows, number, axis=1), parted)
        given = jnp.where((stage == 0) & (turn == 0), fresh, handed[0])
        return jax.tree.map(lambda leaf: leaf[None], (given, others, number))

    def handed_on(y):
        return jax.lax.ppermute(y, AXIS, [(stage, (stage + 1) % count) for stage in range(count)])

    def tick(handed, now):
        taking = jax.shard_map(
            taken_up,
            in_specs=(fresh_spec, _specs(parted), whole, whole),
            out_specs=(fresh_spec, others_spec, split),
        )
        given, others, number = taking(handed, parted, *now)
        y, said = jax.vmap(piece, in_axes=(0, 0, 0, None, 0))(own(now[1]), given, others, shared, number)
        busy = reshard(now[0] != IDLE, jax.typeof(said).sharding.spec)
        handing = jax.shard_map(handed_on, in_specs=fresh_spec, out_specs=fresh_spec)
        return handing(y), (y, jnp.where(busy, said, 0.0).sum())

    def told(made):
        made = made[count - 1 :, 0]  # the last stage's turns, from its first to its last
        if rounds > 1:
            made = made.reshape(-1, rounds, count, *made.shape[1:])[:, -1].reshape(microbatches, *made.shape[1:])
        made = jnp.moveaxis(made, 0, 1)
        made = made.reshape(-1, *made.shape[2:])
        return jax.lax.psum(jnp.where(jax.lax.axis_index(AXIS) == count - 1, made, 0), AXIS)

    nothing = jnp.zeros((count, x.shape[0] // microbatches, *x.shape[1:]), x.dtype, out_sharding=fresh_spec)
    _, (made, said) = jax.lax.scan(tick, nothing, schedule)
    y = jax.shard_map(told, in_specs=PartitionSpec(None, *fresh_spec), out_specs=_specs(x))(made)
    return y, said.sum() / microbatches


def local(
    function: Callable, *, in_specs: Any, out_specs: PartitionSpec, staged: bool, check_vma: bool = True
) -> Callable:
    """`jax.shard_map`, for what may be part of a piece of layers: then each stage computes its own.

    Under `vmap` over a mesh axis JAX (0.10) has every device compute a `shard_map` for all of that axis, and gathers
    what it is given.

    Args:
        function: what a device does with its shards.
        in_specs: of its arguments, whatever the stage.
        out_specs: of its result.
        staged: whether it is part of a piece; it then has gradients there only.
        check_vma: as of `jax.shard_map`.
    """

    def mapped(*arrays):
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)(*arrays)

    if not staged:
        return mapped
    stage = jax.custom_batching.custom_vmap(mapped)

    @stage.def_vmap
    def _(_, given, *arrays):
        given = tuple(given)

        def spread(spec, given):
            return jax.tree.map(lambda each: PartitionSpec(AXIS, *spec) if each else spec, given)

        def own(*arrays):
            return function(*jax.tree.map(lambda each, array: array[0] if each else array, given, arrays))[None]

        specs = jax.tree.map(spread, tuple(in_specs), given)
        out = PartitionSpec(AXIS, *out_specs)
        return jax.shard_map(own, in_specs=specs, out_specs=out, check_vma=check_vma)(*arrays), True

    return stage


def _specs(arrays: Any) -> Any:
    """How each array of a tree is laid out."""
    return jax.tree.map(lambda array: jax.typeof(array).sharding.spec, arrays)


def _rows_here(x: Array) -> int:
    """Rows of `x` on each device."""
    carried = jax.typeof(x).sharding.spec[0]
    axes = carried if isinstance(carried, tuple) else (carried,) if carried else ()
    return x.shape[0] // math.prod(get_abstract_mesh().shape[axis] for axis in axes)


def _parted(rows: Array, microbatches: int) -> Array:
    """Rows as [rows of a microbatch, microbatches, ...]: nothing moves between devices."""
    batch, *rest = rows.shape
    parted = rows.reshape(batch // microbatches, microbatches, *rest)
    first, *others = jax.typeof(rows).sharding.spec
    return reshard(parted, PartitionSpec(first, None, *others))


def _at(array: Array, index: Int[Array, ""], *, axis: int) -> Array:
    return jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)


def _own(layers: Any, rounds: int) -> Callable[[Int[Array, " stages"]], Any]:
    """What each stage computes in a tick, of the round that it is in: arrays with a leading axis of stages.

    In one round that is the same at every tick, and must not look as if it were not: a loop saves what changes for the
    backward pass, every time.
    """
    resting = _specs(layers)
    staged = jax.tree.map(lambda spec: PartitionSpec(AXIS, None, *spec[1:]), resting)
    if rounds == 1:
        first = partial(jax.tree.map, lambda leaf: leaf[None])
        whole = jax.shard_map(first, in_specs=(resting,), out_specs=staged)(layers)
        return lambda turns: whole
    dealt = jax.tree.map(lambda spec: PartitionSpec(AXIS, None, *spec[1:]), staged)
    dealing = jax.shard_map(partial(_dealt, rounds=rounds), in_specs=(resting,), out_specs=(dealt, PartitionSpec(AXIS)))
    pieces, held = dealing(layers)

    def one(pieces, held, turns):
        place = held[0][turns[jax.lax.axis_index(AXIS)]]
        return jax.tree.map(lambda leaf: _at(leaf[0], place, axis=0)[None], pieces)

    choosing = jax.shard_map(one, in_specs=(dealt, PartitionSpec(AXIS), PartitionSpec()), out_specs=staged)
    return lambda turns: choosing(pieces, held, turns)


def _dealt(layers: Any, *, rounds: int) -> tuple[Any, Int[Array, " rounds"]]:
    """The pieces that this stage computes in several rounds, and which of them it is in each round.

    Layers rest in order, stage by stage, whatever the schedule. Piece `p` is computed by stage `p mod stages`, so most
    move. The exchange takes `rounds` permutations, the fewest there can be: in step `j` stage `s`
    sends the piece `j + s // (stages / g)` of its own, g the greatest common divisor of stages and rounds.
    """
    count, stage = stages(), jax.lax.axis_index(AXIS)
    owners, spread = np.arange(count), count // np.gcd(count, rounds)
    sent = (np.arange(rounds)[:, None] + owners[None, :] // spread) % rounds
    pieces = owners[None, :] * rounds + sent
    arriving = np.zeros((count, rounds), np.int32)  # by stage and round: the step in which its piece arrives
    steps = np.broadcast_to(np.arange(rounds)[:, None], pieces.shape)
    arriving[pieces % count, pieces // count] = steps

    def exchange(leaf):
        own, come = leaf.reshape(rounds, -1, *leaf.shape[1:]), []
        for step in range(rounds):
            pairs = [(int(owner), int(pieces[step, owner] % count)) for owner in owners]
            come.append(jax.lax.ppermute(_at(own, jnp.asarray(sent[step])[stage], axis=0), AXIS, pairs))
        return jnp.stack(come)[None]

    return jax.tree.map(exchange, layers), jnp.asarray(arriving)[stage][None]
