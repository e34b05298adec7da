"""Places of rows sent to numbered groups, each computed with something of its own: four ways that give the same.

All but `seats` is for inside `jax.shard_map`. Where groups are spread over mesh axes, so are the rows: either every row
comes to every device (`everywhere`, `in_order`), or places go to the devices of their groups and come back
(`exchanged`, `in_buffers`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_TILE = 512  # of places that fused products take at a time


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Rows of this device, and the groups that each of their places is sent to.

    Attributes:
        rows: what is sent.
        picked: the groups of each place, no two the same.
        weights: of each of them in the place's sum.
        groups: how many there are on all devices.
        axes: mesh axes over which groups, and rows, are spread.
    """

    rows: Float[Array, "batch length size"]
    picked: Int[Array, "batch length chosen"]
    weights: Float[Array, "batch length chosen"]
    groups: int
    axes: tuple[str, ...]

    @property
    def held(self) -> int:
        """Groups of this device."""
        return self.groups // (jax.lax.axis_size(self.axes) if self.axes else 1)

    @property
    def here(self) -> Int[Array, "batch length chosen"]:
        """The groups of each place, counted from the first on this device."""
        return self.picked - jax.lax.axis_index(self.axes) * self.held if self.axes else self.picked

    def gathered(self) -> "Sent":
        """The rows of all devices, on each."""
        if not self.axes:
            return self
        arrays = dict(rows=self.rows, picked=self.picked, weights=self.weights)
        return replace(self, **{name: jax.lax.all_gather(each, self.axes, tiled=True) for name, each in arrays.items()})

    def returned(self, made: Float[Array, "all length size"]) -> Float[Array, "batch length size"]:
        """Each device's own rows, of the sum of what all of them made of the rows of all."""
        return jax.lax.psum_scatter(made, self.axes, tiled=True) if self.axes else made


def seats(picked: Int[Array, "batch length chosen"], groups: int) -> Int[Array, "batch length chosen"]:
    """How many were sent to the same group before, in the order of places of a row, and of choices of a place.

    Whoever is later in a row takes no seat from those before.
    """
    batch, length, chosen = picked.shape
    sent = jax.nn.one_hot(picked, groups, dtype=jnp.int32).reshape(batch, length * chosen, groups)
    before = jnp.cumsum(sent, axis=1) - sent
    return (before * sent).sum(axis=-1).reshape(picked.shape)


def everywhere(sent: Sent, compute: Callable) -> Float[Array, "batch length size"]:
    """Every group computes every place.

    Args:
        sent: places and their groups.
        compute: rows, and weights of its groups, [batch, length, groups here], to the sum of what its groups make.
    """
    sent = sent.gathered()
    spread = jax.nn.one_hot(sent.here, sent.held, dtype=sent.weights.dtype)
    return sent.returned(compute(sent.rows, (spread * sent.weights[..., None]).sum(axis=2)))


def in_order(
    sent: Sent, compute: Callable, kernels: Any, *, block: int | None = None
) -> Float[Array, "batch length size"]:
    """Places are put in the order of their groups, which makes one run of each; none is left out.

    Where groups are elsewhere too, nobody knows beforehand how long the runs of those here are: from nothing to all
    places of all devices. So they are computed a block after another, as many as there are, and what lies between rows
    and sums is computed again for gradients: neither time nor memory are those of the worst case, but for the rows.

    Args:
        sent: places and their groups.
        compute: `kernels`, runs [places, size], the weight of each place and the length of each group's run [groups
            here], to what the groups make of them times the weight. Places after the last run are zeros of weight 0,
            and nobody asks what is made of them.
        kernels: what it takes besides, and has gradients.
        block: places of a block; None for a quarter more than there are if all devices get as many.
    """
    every = sent.gathered()
    flat = map(_by_place, (every.rows, every.here, every.weights))
    made = _runs(*flat, sent.held, compute, kernels, (block or _block(sent)) if sent.axes else None)
    return sent.returned(made.reshape(every.rows.shape))


def exchanged(
    sent: Sent, compute: Callable, kernels: Any, *, block: int | None = None
) -> Float[Array, "batch length size"]:
    """As `in_order`, but a place goes only to the devices of its groups, once to each, and the sums come back.

    A device has room for the places of all devices, so that none is left out even if all are sent to it: that is what
    `in_order` gathers. Less is sent; the room is no smaller.

    Args:
        sent: places and their groups.
        compute: as of `in_order`.
        kernels: likewise.
        block: likewise.
    """
    if not sent.axes:
        return in_order(sent, compute, kernels)
    rows, picked, weights = map(_by_place, (sent.rows, sent.picked, sent.weights))
    devices, me = jax.lax.axis_size(sent.axes), jax.lax.axis_index(sent.axes)
    (places, chosen), room = picked.shape, devices * len(rows)
    picked, weights = (jax.lax.all_gather(array, sent.axes) for array in (picked, weights))
    goes = jax.nn.one_hot(picked // sent.held, devices, dtype=bool).any(axis=2)  # [from, place, to], known to all
    sizes = goes.sum(axis=1, dtype=jnp.int32)
    leaving = _those(goes[me].T.reshape(-1), places * min(chosen, devices))
    leaving = jnp.where(leaving < room, leaving % places, places)  # whoever is beyond the last place is nobody
    arrived = exchange(_leave(rows, leaving), sizes, axes=sent.axes, room=room)
    arriving = _those(goes[:, :, me].reshape(-1), room)
    here, weights = (
        array.reshape(room, chosen).at[arriving].get(mode="fill", fill_value=nowhere)
        for array, nowhere in ((picked - me * sent.held, sent.held), (weights, 0))
    )
    made = _runs(arrived, here, weights, sent.held, compute, kernels, block or _block(sent))
    told = exchange(made, sizes.T, axes=sent.axes, room=len(leaving))
    return _come_back(rows, leaving, told).reshape(sent.rows.shape)


def exchange(
    rows: Float[Array, "here size"], sizes: Int[Array, "from to"], *, axes: tuple[str, ...], room: int
) -> Float[Array, "{room} size"]:
    """Runs of rows, one for each device along `axes` in their order, go to those devices: a ragged all-to-all.

    With `sizes` transposed, what has arrived goes back; so do gradients. XLA has no such exchange for CPUs: there all
    rows go to all devices, and each keeps its own.

    Args:
        rows: this device's runs, one after another. What follows the last stays.
        sizes: rows of the run from each device to each, the same on all.
        axes: mesh axes.
        room: rows of the result, no fewer than arrive anywhere.

    Returns:
        What arrives, in the order of the devices that it comes from. What follows is nobody's word.
    """
    return _exchange(axes, (len(rows), room), rows, sizes)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _exchange(axes, lengths, rows, sizes):
    me = jax.lax.axis_index(axes)
    starts = jnp.cumsum(sizes, axis=1) - sizes  # of each run, where it comes from
    landings = jnp.cumsum(sizes, axis=0) - sizes  # and where it goes to

    def ragged(rows):
        room = jax.lax.empty((lengths[1], rows.shape[1]), rows.dtype)
        return jax.lax.ragged_all_to_all(rows, room, starts[me], sizes[me], landings[me], sizes[:, me], axis_name=axes)

    def gathered(rows):
        place, ends = jnp.arange(lengths[1]), landings[:, me] + sizes[:, me]
        source = jnp.searchsorted(ends, place, side="right")
        index = source * lengths[0] + (starts - landings).at[source, me].get(mode="clip") + place
        index = jnp.where(place < ends[-1], index, lengths[0] * len(sizes))
        return jax.lax.all_gather(rows, axes, tiled=True).at[index].get(mode="fill", fill_value=jnp.nan)

    return jax.lax.platform_dependent(rows, cpu=gathered, default=ragged)


def _exchange_forward(axes, lengths, rows, sizes):
    return _exchange(axes, lengths, rows, sizes), sizes


def _exchange_backward(axes, lengths, sizes, gradient):
    return _exchange(axes, lengths[::-1], gradient, sizes.T), None


_exchange.defvjp(_exchange_forward, _exchange_backward)


@jax.custom_vjp
def _leave(rows, index):
    """Rows that go elsewhere; where none goes, any."""
    return rows.at[index].get(mode="clip")


@jax.custom_vjp
def _come_back(rows, index, told):
    """Sums for as many rows of what is told of them; of none, it is nobody's word."""
    return jnp.zeros_like(rows).at[index].add(told, mode="drop")


# Each is the other's gradient, which JAX does not know: it would write zeros where no row goes.
_leave.defvjp(
    lambda rows, index: (_leave(rows, index), (rows, index)),
    lambda saved, gradient: (_come_back(*saved, gradient), None),
)
_come_back.defvjp(
    lambda rows, index, told: (_come_back(rows, index, told), index),
    lambda index, gradient: (jnp.zeros_like(gradient), None, _leave(gradient, index)),
)


def _by_place(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _those(which: Array, room: int) -> Array:
    """Indices of what is true, in order, as many as there is room for; where there is more room, `len(which)`."""
    order = jnp.argsort(~which, stable=True)[:room]
    return jnp.where(which[order], order, len(which))


def _block(sent: Sent) -> int:
    """Places of a quarter more runs than a device gets on average, in whole tiles."""
    return -(-5 * sent.picked.size // (4 * _TILE)) * _TILE


def _runs(rows, here, weights, held, compute, kernels, block):
    """Weighted sums, [places, size], of what the `held` groups here make of places. Without a block, all are here."""
    places, chosen = here.shape
    here = jnp.where((here >= 0) & (here < held), here, held).reshape(-1)  # those of groups elsewhere come last
    order = jnp.argsort(here, stable=True)[: places * min(chosen, held)]
    lengths = (here[:, None] == jnp.arange(held)[None, :]).sum(axis=0, dtype=jnp.int32)
    if block is None:
        made = compute(kernels, rows[order // chosen], weights.reshape(-1)[order], lengths)
        return jnp.zeros_like(rows).at[order // chosen].add(made)
    order = jnp.where(here[order] < held, order, here.size)
    block = min(block, len(order))
    order = jnp.pad(order, (0, -len(order) % block), constant_values=here.size)
    return _in_blocks(compute, block, kernels, rows, weights.reshape(-1), order, lengths)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_blocks(compute, block, kernels, rows, weights, order, lengths):
    def step(state):
        start, made = state
        _, place, *taken = _taken(block, start, rows, weights, order, lengths)
        return start + block, made.at[place].add(compute(kernels, *taken), mode="drop")

    return jax.lax.while_loop(lambda state: state[0] < lengths.sum(), step, (0, jnp.zeros_like(rows)))[1]


def _in_blocks_forward(compute, block, *arguments):
    return _in_blocks(compute, block, *arguments), arguments


def _in_blocks_backward(compute, block, arguments, gradient):
    kernels, rows, weights, order, lengths = arguments

    def step(start, by_rows, by_weights):
        index, place, *taken, inside = _taken(block, start, rows, weights, order, lengths)
        pull = jax.vjp(lambda *taken: compute(*taken, inside), kernels, *taken)[1]
        by_kernels, each, weight = pull(gradient.at[place].get(mode="fill", fill_value=0))
        return by_kernels, by_rows.at[place].add(each, mode="drop"), by_weights.at[index].add(weight, mode="drop")

    def another(state):
        start, sums, *others = state
        by_kernels, *others = step(start, *others)
        return start + block, jax.tree.map(jnp.add, sums, by_kernels), *others

    first = (block, *step(0, jnp.zeros_like(rows), jnp.zeros_like(weights)))
    _, *found = jax.lax.while_loop(lambda state: state[0] < lengths.sum(), another, first)
    return *found, None, None


_in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)


def _taken(block, start, rows, weights, order, lengths):
    """What a block has that starts there: where its weights and rows are (nobody's beyond the last), both, and runs."""
    index = jax.lax.dynamic_slice(order, (start,), (block,))
    place, ends = index // (len(weights) // len(rows)), jnp.cumsum(lengths)
    inside = jnp.clip(ends - start, 0, block) - jnp.clip(ends - lengths - start, 0, block)
    get = dict(mode="fill", fill_value=0)
    return index, place, rows.at[place].get(**get), weights.at[index].get(**get), inside


def in_buffers(
    sent: Sent, compute: Callable, *, taken: Int[Array, "batch length chosen"], capacity: int
) -> Float[Array, "batch length size"]:
    """Each group has `capacity` seats for each row; who finds none adds nothing (Lepikhin et al. 2021).

    Two all-to-alls along the axes of what is sent.

    Args:
        sent: places and their groups.
        compute: buffers, [batch, groups here, capacity, size], to what the groups make of them.
        taken: what `seats` says.
        capacity: seats of a group for a row.
    """
    batch, length, size = sent.rows.shape
    none = sent.groups * capacity
    seat = jnp.where(taken < capacity, sent.picked * capacity + taken, none)

    def seated(rows, seat):
        places = jnp.broadcast_to(jnp.arange(length)[:, None], seat.shape)
        sitting = jnp.full(none, length).at[seat].set(places, mode="drop")
        return rows.at[sitting].get(mode="fill", fill_value=0)

    buffers = jax.vmap(seated)(sent.rows, seat).reshape(batch, sent.groups, capacity, size)
    if sent.axes:
        buffers = jax.lax.all_to_all(buffers, sent.axes, split_axis=1, concat_axis=0, tiled=True)
    made = compute(buffers)
    if sent.axes:
        made = jax.lax.all_to_all(made, sent.axes, split_axis=0, concat_axis=1, tiled=True)
    told = jax.vmap(lambda made, seat: made.at[seat].get(mode="fill", fill_value=0))(
        made.reshape(batch, none, size), seat
    )
    return (told * sent.weights[..., None]).sum(axis=2)
