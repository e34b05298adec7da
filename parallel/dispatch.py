"""Places of rows sent to numbered groups, each computed with something of its own: three ways that give the same.

All but `seats` is for inside `jax.shard_map`. Where groups are spread over mesh axes, so are the rows: either every row
comes to every device (`everywhere`, `in_order`), or places go to the device of their group and come back
(`in_buffers`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Rows of this device, and the groups that each of their places is sent to.

    Attributes:
        rows: what is sent.
        picked: the groups of each place.
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
    """
    sent = sent.gathered()
    held, rows, here = sent.held, sent.rows, sent.here.reshape(-1)
    here = jnp.where((here >= 0) & (here < held), here, held)  # those of groups elsewhere come last
    order = jnp.argsort(here, stable=True)
    lengths = (here[:, None] == jnp.arange(held)[None, :]).sum(axis=0, dtype=jnp.int32)
    flat = rows.reshape(-1, rows.shape[-1])
    places = order // sent.picked.shape[-1]
    runs = flat[places]
    if sent.axes:  # what a product of runs makes of places in none of them is nobody's word
        real = (here[order] < held)[:, None]
        runs = jnp.where(real, runs, 0)
        made = jnp.where(real, compute(runs, lengths), 0)
    else:
        made = compute(runs, lengths)
    made = made * sent.weights.reshape(-1)[order][:, None]
    return sent.returned(jnp.zeros_like(flat).at[places].add(made).reshape(rows.shape))


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
