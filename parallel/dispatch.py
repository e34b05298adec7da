"""Places of rows sent to numbered groups, each computed with something of its own: four ways that give the same.

All but `seats` is for inside `jax.shard_map`. Where groups are spread over mesh axes, so are the rows: either every row
comes to every device (`everywhere`, `in_order`), or places go to the devices of their groups and come back
(`exchanged`, `in_buffers`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def in_order(sent: Sent, compute: Callable) -> Float[Array, "batch length size"]:
    """Places are put in the order of their groups, which makes one run of each; none is left out.

    Args:
        sent: places and their groups.
        compute: runs, [places, size], and the length of each group's, [groups here], to what the groups make of them.
            Places after the last run are zeros, and nobody asks what is made of them.
    """
    sent = sent.gathered()
    made = _runs(*map(_by_place, (sent.rows, sent.here, sent.weights)), sent.held, compute, some=bool(sent.axes))
    return sent.returned(made.reshape(sent.rows.shape))


def exchanged(sent: Sent, compute: Callable) -> Float[Array, "batch length size"]:
    """As `in_order`, but a place goes only to the devices of its groups, once to each, and the sums come back.

    A device has room for the places of all devices, so that none is left out even if all are sent to it, and
    min(chosen, groups here) times as many in runs. That is what `in_order` holds too: less is sent, memory is not less.

    Args:
        sent: places and their groups.
        compute: as of `in_order`.
    """
    if not sent.axes:
        return in_order(sent, compute)
    rows, picked, weights = map(_by_place, (sent.rows, sent.picked, sent.weights))
    devices, me = jax.lax.axis_size(sent.axes), jax.lax.axis_index(sent.axes)
    (places, chosen), room = picked.shape, devices * len(rows)
    picked, weights = (jax.lax.all_gather(array, sent.axes) for array in (picked, weights))
    goes = jax.nn.one_hot(picked // sent.held, devices, dtype=bool).any(axis=2)  # [from, place, to], known to all
    sizes = goes.sum(axis=1, dtype=jnp.int32)
    leaving = _those(goes[me].T.reshape(-1), places * min(chosen, devices))
    leaving = jnp.where(leaving < room, leaving % places, places)  # whoever is beyond the last place is nobody
    arrived = exchange(rows.at[leaving].get(mode="fill", fill_value=0), sizes, axes=sent.axes, room=room)
    arriving = _those(goes[:, :, me].reshape(-1), room)
    here, weights = (
        array.reshape(room, chosen).at[arriving].get(mode="fill", fill_value=nowhere)
        for array, nowhere in ((picked - me * sent.held, sent.held), (weights, 0))
    )
    made = _runs(arrived, here, weights, sent.held, compute, some=True)
    told = exchange(made, sizes.T, axes=sent.axes, room=len(leaving))
    return jnp.zeros_like(rows).at[leaving].add(told, mode="drop").reshape(sent.rows.shape)


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
        shape = (lengths[1], rows.shape[1])
        room = jax.lax.pcast(jax.lax.empty(shape, rows.dtype), tuple(jax.typeof(rows).mat.varying), to="varying")
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


def _by_place(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _those(which: Array, room: int) -> Array:
    """Indices of what is true, in order, as many as there is room for; where there is more room, `len(which)`."""
    order = jnp.argsort(~which, stable=True)[:room]
    return jnp.where(which[order], order, len(which))


def _runs(rows, here, weights, held, compute, *, some):
    """Weighted sums, [places, size], of what the `held` groups here make of places.

    With `some`, there are groups elsewhere; what they would make is left out.
    """
    places, chosen = here.shape
    here = jnp.where((here >= 0) & (here < held), here, held).reshape(-1)  # those of groups elsewhere come last
    order = jnp.argsort(here, stable=True)[: places * min(chosen, held)]
    order = jnp.where(here[order] < held, order, here.size) if some else order
    lengths = (here[:, None] == jnp.arange(held)[None, :]).sum(axis=0, dtype=jnp.int32)
    get = dict(mode="fill", fill_value=0) if some else dict(mode="promise_in_bounds")
    made = compute(rows.at[order // chosen].get(**get), lengths)
    made = made * weights.reshape(-1).at[order].get(**get)[:, None]
    return jnp.zeros_like(rows).at[order // chosen].add(made, mode="drop")


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
