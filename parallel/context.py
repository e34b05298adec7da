"""Attention over rows whose length is split over devices.

Two ways. Ulysses (Jacobs et al. 2023) exchanges: every device gives away most of its heads and gets the whole length of
those it keeps, attends as if nothing were split, and exchanges back. Ring attention (Liu et al. 2023) leaves queries
where they are and passes keys and values round; what a query has seen so far is a running softmax, and the backward
pass goes round once more, gradients of keys and values travelling with them. The first sends less and works with every
kernel; the second asks nothing of the number of heads, and never holds more than one neighbour's keys.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec, reshard
from jaxtyping import Array, Bool, Float, Int

from parallel import pipeline
from parallel.sharding import Rules

UNSEEN = -1e30  # a score that no softmax notices; finite, so that a row that sees nothing is not NaN


class Context(Enum):
    """How queries meet keys on other devices: heads are exchanged for length, or keys and values go round."""

    ULYSSES = "ulysses"
    RING = "ring"


def exchanged(rules: Rules, mesh: Mesh | AbstractMesh, *, kv_heads: int, groups: int) -> Rules | None:
    """The rules of attention after Ulysses' exchange: heads are split further, and length is not; None if they cannot.

    Key heads are split if they can be; else the queries that share one, and keys are gathered whole.
    """
    for name, count in (("kv_heads", kv_heads), ("groups", groups)):
        further = replace(rules, length=(), **{name: getattr(rules, name) + rules.length})
        if count % further.shards(name, mesh) == 0:
            return further
    return None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What becomes of the product of a query and a key that it sees.

    Attributes:
        scale: factor.
        cap: soft cap after it (bends scores smoothly into (-cap, cap)), or None.
        back: furthest place back that a query sees, or None for no limit.
        ahead: furthest place ahead, or None for no limit.
    """

    scale: float
    cap: float | None = None
    back: int | None = None
    ahead: int | None = None


def ring(
    q: Float[Array, "batch kv_heads groups queries head_dim"],
    k: Float[Array, "batch kv_heads keys head_dim"],
    v: Float[Array, "batch kv_heads keys head_dim"],
    scores: Scores,
    *,
    rules: Rules,
    segments: tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]] | None = None,
    slopes: Float[Array, "kv_heads groups"] | None = None,
) -> Float[Array, "batch kv_heads groups queries head_dim"]:
    """Ring attention: weighted means of values, the weights a softmax of scores over the whole length.

    Places count along the whole row, wherever its parts are. Where only earlier places are seen, without limit, each
    device works on one early part of the row and on the late part that mirrors it, so that all have equally much to do
    (Brandon et al. 2023 describe the imbalance); these are sent there first, and results back. With a window only the
    neighbours that it reaches are asked.

    Args:
        q: queries.
        k: keys.
        v: values.
        scores: scale, cap and reach.
        rules: `length` names the mesh axis along which places lie.
        segments: document of each query and of each key; a query sees its own. None: a row is one document.
        slopes: what a place of distance lowers a score by (ALiBi), or None.

    Raises:
        ValueError: if the length is split over more than one mesh axis.
    """
    if len(rules.length) != 1:
        raise ValueError(f"ring attention goes along one mesh axis, not along {rules.length}")
    (axis,), spec = rules.length, rules.spec
    heads = ("batch", "kv_heads")
    asking, asked = spec(*heads, "groups", "length", None), spec(*heads, "length", None)
    hints = {"segments": segments, "slopes": slopes}
    told = {"segments": spec("batch", None), "slopes": spec("kv_heads", "groups")}
    hints = {name: jax.tree.map(lambda x, to=told[name]: reshard(x, to), hints[name]) for name in hints}
    specs = {name: jax.tree.map(lambda _, to=told[name]: to, hints[name]) for name in hints}

    over = _axes(asking)

    def local(q, k, v, hints):
        size, place = jax.lax.axis_size(axis), q.shape[3]
        balanced = scores.ahead == 0 and scores.back is None and place % 2 == 0 and size > 1
        way = _Ring(axis=axis, size=size, scores=scores, balanced=balanced, over=over)
        # Queries of several devices may share a key head that each of them has: its gradient is the sum of theirs.
        k, v = (jax.lax.pcast(x, tuple(set(over) - set(_axes(asked))), to="varying") for x in (k, v))
        q, k, v = (way.parted(x) for x in (q, k, v))
        return way.whole(_attend(way, q, k, v, hints))

    told = dict(in_specs=(asking, asked, asked, specs), out_specs=asking, staged=bool(rules.layers))
    return pipeline.local(local, **told)(q, k, v, hints)


@dataclass(frozen=True, kw_only=True)
class _Ring:
    """Who holds which places, and who meets whom. Arrays of a device have a leading axis for its parts of the row.

    Attributes:
        axis: the mesh axis.
        size: devices along it.
        scores: what becomes of products.
        over: mesh axes over which what is computed varies.
        balanced: whether a device holds the n-th part of twice as many and the n-th from the end, or one part.
    """

    axis: str
    size: int
    scores: Scores
    over: tuple[str, ...]
    balanced: bool

    def parted(self, x: Array) -> Array:
        """The parts of the row that this device works on, from the stretch of it that lies here."""
        if not self.balanced:
            return x[None]
        even, odd = (self._sent(part, turn) for turn, part in enumerate(jnp.split(x, 2, axis=-2)))
        first = jax.lax.axis_index(self.axis) % 2 == 0
        return jnp.stack([jnp.where(first, even, odd), jnp.where(first, odd, even)])

    def whole(self, parts: Array) -> Array:
        """The other way round."""
        if not self.balanced:
            return parts[0]
        first = jax.lax.axis_index(self.axis) % 2 == 0
        even, odd = jnp.where(first, parts[0], parts[1]), jnp.where(first, parts[1], parts[0])
        return jnp.concatenate([self._sent(even, 0, back=True), self._sent(odd, 1, back=True)], axis=-2)

    def _sent(self, part: Array, turn: int, *, back: bool = False) -> Array:
        """Parts `2 i + turn` of the row from device i to the one that works on them, or back."""
        last = 2 * self.size - 1
        pairs = [(i, min(2 * i + turn, last - 2 * i - turn)) for i in range(self.size)]
        return jax.lax.ppermute(part, self.axis, [(b, a) for a, b in pairs] if back else pairs)

    def start(self, device: Int[Array, ""], part: Int[Array, ""] | int, length: int) -> Int[Array, ""]:
        """First place of a device's part, of `length` places."""
        return jnp.where(part == 0, device, 2 * self.size - 1 - device) * length

    def pairs(self, source: Int[Array, ""] | None) -> list[tuple[Any, Any]]:
        """Which parts of queries meet which parts of the keys of another device, or of this one (None)."""
        if not self.balanced:
            return [(0, 0)]
        if source is None:
            return [(0, 0), (1, 0), (1, 1)]
        # Late queries see all early keys; and early keys are seen by early queries if they are even earlier, late ones
        # by late queries if their device is the later one: so early parts, or late parts, meet.
        both = jnp.where(source < jax.lax.axis_index(self.axis), 0, 1)
        return [(1, 0), (both, both)]

    def rounds(self, length: int) -> list[tuple[int, int]]:
        """Direction in which keys go, and past how many devices, where each holds `length` of them in one part."""
        back, ahead = (
            self.size - 1 if limit is None else min(self.size - 1, -(-limit // length))
            for limit in (self.scores.back, self.scores.ahead)
        )
        if back + ahead >= self.size - 1:
            back, ahead = self.size - 1, 0
        return [(direction, count) for direction, count in ((1, back), (-1, ahead)) if count]

    def filled(self, like: Array, value: float, *, size: int | None = None) -> Float[Array, "..."]:
        """A float32 array of the shape of `like`, with a last axis of another size if that is given."""
        shape = like.shape if size is None else (*like.shape[:-1], size)
        return jax.lax.pcast(jnp.full(shape, value, jnp.float32), self.over, to="varying")

    def shift(self, tree: Any, by: int) -> Any:
        """To the device `by` places further round."""
        pairs = [(i, (i + by) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), tree)

    def travel(self, meet: Callable, state: Any, own: Any, riders: Any) -> tuple[Any, Any]:
        """Lets `own` meet every device that it has to: first its own, then those it passes.

        Args:
            meet: from state, visitor, riders and the visitor's home (None for this device) to state and riders.
            state: what stays here.
            own: what goes round.
            riders: what goes round with it and is changed by those it meets.

        Returns:
            The state after all visits, and the sum of what the riders brought home.
        """
        here = jax.lax.axis_index(self.axis)
        state, home = meet(state, own, riders, None)

        def step(carry, _, direction):
            state, visitor, riders, source = carry
            following = self.shift(visitor, direction)  # sent on before it is looked at: the two can overlap
            state, riders = meet(state, visitor, riders, source)
            return (state, following, self.shift(riders, direction), (source - direction) % self.size), None

        for direction, count in self.rounds(jax.tree.leaves(own)[0].shape[-2]):
            carry = (state, self.shift(own, direction), riders, (here - direction) % self.size)
            carry, _ = jax.lax.scan(partial(step, direction=direction), carry, length=count - 1)
            state, visitor, brought, source = carry
            state, brought = meet(state, visitor, brought, source)
            home = jax.tree.map(jnp.add, home, self.shift(brought, -direction * count))
        return state, home

    def scored(self, q: Array, k: Array, hints: dict, queries: tuple, keys: tuple) -> Float[Array, "..."]:
        """Scores of a part of queries with a part of keys, each given also by its device and number."""
        asking, asked = q.shape[-2], k.shape[-2]
        first, other = self.start(*queries, asking), self.start(*keys, asked)
        found = jnp.einsum("bkgqh,bksh->bkgqs", q * self.scores.scale, k).astype(jnp.float32)
        if self.scores.cap is not None:
            found = self.scores.cap * jnp.tanh(found / self.scores.cap)
        ahead = (other + jnp.arange(asked))[None, :] - (first + jnp.arange(asking))[:, None]
        if hints["slopes"] is not None:
            found = found - hints["slopes"][None, :, :, None, None] * jnp.abs(ahead)[None, None, None].astype(
                jnp.float32
            )
        visible = self._visible(ahead, hints["segments"], first, other)
        return found if visible is None else found + jnp.where(visible[:, None, None], 0.0, UNSEEN)

    def _visible(self, ahead, segments, first, other) -> Bool[Array, "#batch queries keys"] | None:
        limits = self.scores
        visible = None if limits.ahead is None else (ahead <= limits.ahead)[None]
        if limits.back is not None:
            near = (-ahead <= limits.back)[None]
            visible = near if visible is None else visible & near
        if segments is not None:
            asking = jax.lax.dynamic_slice_in_dim(segments[0], first, ahead.shape[0], axis=1)
            asked = jax.lax.dynamic_slice_in_dim(segments[1], other, ahead.shape[1], axis=1)
            same = asking[:, :, None] == asked[:, None, :]
            visible = same if visible is None else visible & same
        return visible


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    return tuple(axis for entry in spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,)))


def _at(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _put(tree: Any, value: Any, index: Any) -> Any:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, index, 0), tree, value)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(way: _Ring, q: Array, k: Array, v: Array, hints: dict) -> Array:
    return _forward(way, q, k, v, hints)[0]


def _forward(way: _Ring, q: Array, k: Array, v: Array, hints: dict) -> tuple[Array, tuple]:
    """Once round with keys and values: largest score, sum of weights and weighted sum of values of each query."""
    here = jax.lax.axis_index(way.axis)

    def meet(state, visitor, riders, source):
        for i, j in way.pairs(source):
            k, v = _at(visitor, j)
            largest, total, mixed = _at(state, i)
            scores = way.scored(_at(q, i), k, hints, (here, i), (here if source is None else source, j))
            most = jnp.maximum(largest, scores.max(axis=-1, keepdims=True))
            weights, fade = jnp.exp(scores - most), jnp.exp(largest - most)
            more = jnp.einsum("bkgqs,bksh->bkgqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            total = fade * total + weights.sum(axis=-1, keepdims=True)
            state = _put(state, (most, total, fade * mixed + more), i)
        return state, riders

    state = way.filled(q, UNSEEN, size=1), way.filled(q, 0.0, size=1), way.filled(q, 0.0)
    (largest, total, mixed), _ = way.travel(meet, state, (k, v), ())
    out = (mixed / total).astype(v.dtype)
    return out, (q, k, v, hints, out, largest, total)


def _backward(way: _Ring, saved: tuple, gradient: Array) -> tuple:
    """Once round again: weights from what was saved of each query, and with keys and values go their gradients."""
    q, k, v, hints, out, largest, total = saved
    here, gradient = jax.lax.axis_index(way.axis), gradient.astype(jnp.float32)
    # What the softmax's normalisation takes from every score's gradient (Dao et al. 2022, appendix B).
    mean = (gradient * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)

    def meet(state, visitor, riders, source):
        for i, j in way.pairs(source):
            (k, v), (dk, dv), dq = _at(visitor, j), _at(riders, j), _at(state, i)
            queries, keys = (here, i), (here if source is None else source, j)
            scored = partial(way.scored, hints=hints, queries=queries, keys=keys)
            scores, pull = jax.vjp(scored, _at(q, i), k)
            weights, above = jnp.exp(scores - _at(largest, i)) / _at(total, i), _at(gradient, i)
            products = jnp.einsum("bkgqh,bksh->bkgqs", above, v.astype(jnp.float32))
            more, moved = pull(weights * (products - _at(mean, i)))
            state = _put(state, dq + more.astype(jnp.float32), i)
            values = jnp.einsum("bkgqs,bkgqh->bksh", weights, above)
            riders = _put(riders, (dk + moved.astype(jnp.float32), dv + values), j)
        return state, riders

    dq, (dk, dv) = way.travel(meet, way.filled(q, 0.0), (k, v), (way.filled(k, 0.0), way.filled(v, 0.0)))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
