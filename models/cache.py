"""Keys and values of what was read, as data: a decoder goes on from where it is, one token at a time.

    decoder = CachedDecoder(model)                                  # in a compiled function
    hidden, cache = decoder.prefill(prompts, first=first, capacity=200)
    hidden, cache = decoder.extend(cache, tokens)                   # as often as there is room

The blocks that read are those that were trained; only their attentions have stand-ins, which remember. So whatever a
block is made of, its norms and branches have one definition.

Prompts of a batch end at the same place. Rows that are shorter have padding in front, which nothing sees, so that all
rows write to the same slot at each step. An attention with a window has as many slots as that and writes in a ring.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, Bool, Float, Int

from models.attention import Attention, MultiHeadAttention, Sight, attend
from models.execution import Kernel
from models.positions import Positions, Start, alibi_slopes
from models.stack import ResidualBlock
from models.transformer import Decoder, EncoderDecoder, Model


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Remembered:
    """Keys and values of one attention; the place `p` of a row is in slot `p % slots`."""

    keys: Float[Array, "batch kv_heads slots head_dim"]
    values: Float[Array, "batch kv_heads slots head_dim"]

    @property
    def slots(self) -> int:
        """How many places are remembered."""
        return self.keys.shape[2]

    def put(
        self,
        keys: Float[Array, "batch kv_heads 1 head_dim"],
        values: Float[Array, "batch kv_heads 1 head_dim"],
        place: Int[Array, ""],
    ) -> "Remembered":
        """With the keys and values of one more place, which may overwrite the oldest."""
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=place % self.slots, axis=2)
        return Remembered(keys=write(self.keys, keys), values=write(self.values, values))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """All that a decoder remembers of a batch.

    Attributes:
        place: how many places were read, padding included; the next token's place.
        first: first place of each row that is not padding.
        own: what each block's attention to earlier places remembers, in the order of blocks.
        memory: keys and values of the encoder's output in each block, computed once; empty without an encoder.
        memory_segments: 1 where the encoder's input is real, 0 where it is padding; None where all is real.
        capacity: most places there can be.
    """

    place: Int[Array, ""]
    first: Int[Array, " batch"]
    own: tuple[Remembered, ...]
    memory: tuple[Remembered, ...]
    memory_segments: Int[Array, "batch inputs"] | None
    capacity: int = field(metadata=dict(static=True))

    def repeated(self, times: int) -> "Cache":
        """Each row `times` times, one behind the other."""

        def repeat(rows):
            return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), rows)

        names = ("first", "own", "memory", "memory_segments")  # all that has an axis of rows
        return replace(self, **_by_device(repeat, {name: getattr(self, name) for name in names}))

    def reordered(self, parents: Int[Array, " batch"]) -> "Cache":
        """Each row going on from another one of the same memory.

        Args:
            parents: the row that each goes on from, counted from the first row on the same device.
        """

        def take(own, parents):
            return jax.tree.map(lambda x: x[parents], own)

        return replace(self, own=_by_device(take, self.own, parents))


def _by_device(function: Callable, *trees):
    """`function` of each device's own rows and heads; the first tree's layout is that of the result."""
    specs = tuple(jax.tree.map(lambda x: PartitionSpec(*jax.typeof(x).sharding.spec), tree) for tree in trees)
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0])(*trees)


class CachedDecoder:
    """The decoder of a model, reading piece by piece.

    Layers are written out, each with parameters and a cache of its own: in a loop over layers every step would copy
    every cache. Make it in the compiled function that uses it, before a loop over steps, so that the parameters of
    layers are taken apart once.

    Args:
        model: a decoder, or an encoder and a decoder.

    Raises:
        ValueError: if the model has no decoder, or one that sees later places.
    """

    def __init__(self, model: Model):
        if isinstance(model, EncoderDecoder):
            self._prelude, stack, self._norm = model.decoder_prelude, model.decoder, model.decoder_norm
        elif isinstance(model, Decoder):
            self._prelude, stack, self._norm = model.prelude, model.stack, model.norm
        else:
            raise ValueError(f"{model.config.family}: an encoder alone cannot write a text")
        if not all(mixer.causal for mixer in stack.config.mixers):
            raise ValueError(f"{model.config.family}: a decoder that sees later places cannot write a text")
        self._model, self._execution = model, model.execution
        self._relative = stack.relative if stack.config.relative else None
        self._blocks = stack.blocks()

    def prefill(
        self,
        tokens: Int[Array, "batch length"],
        *,
        first: Int[Array, " batch"],
        capacity: int,
        prefix: Bool[Array, "batch length"] | None = None,
        inputs: Int[Array, "batch inputs"] | None = None,
        input_segments: Int[Array, "batch inputs"] | None = None,
    ) -> tuple[Float[Array, "batch length embed"], Cache]:
        """Reads prompts, all places at once.

        Args:
            tokens: prompts that end at the last place, padding in front.
            first: first place of each row that is not padding.
            capacity: most places there can be, those of `tokens` included.
            prefix: places that earlier ones see too (a model trained on prefixes); None for none.
            inputs: what the encoder reads, where there is one.
            input_segments: 1 where that is real, 0 where it is padding; None where all is real.

        Returns:
            The residual stream before the head at each place, and the cache.

        Raises:
            ValueError: if there is no room for the prompts, or no learned position for the last place; if inputs are
                given to a model without an encoder, or to none with one.
        """
        config, length = self._model.config, tokens.shape[1]
        if capacity < length:
            raise ValueError(f"a cache of {capacity} places has no room for prompts of {length}")
        if config.embedding.positions is Positions.LEARNED and capacity > config.length:
            raise ValueError(f"{config.family}: there are learned positions for {config.length} places, not {capacity}")
        if (inputs is None) != (config.encoder is None):
            raise ValueError(f"{config.family}: inputs are for a model with an encoder, which cannot do without")
        by_row = self._execution.rules.spec("batch")
        tokens, first, inputs, input_segments = (
            array if array is None else reshard(array, by_row) for array in (tokens, first, inputs, input_segments)
        )
        memory = ()
        if inputs is not None:
            encoded = self._model.encode(inputs, segments=input_segments)
            pairs = (block.cross.keys_and_values(encoded, None) for block in self._blocks)
            memory = tuple(Remembered(keys=keys, values=values) for keys, values in pairs)
        cache = Cache(
            place=jnp.asarray(length, jnp.int32), first=first, own=(), memory=memory, memory_segments=input_segments,
            capacity=capacity,
        )  # fmt: skip
        segments = (jnp.arange(length)[None, :] >= first[:, None]).astype(jnp.int32)
        bias = self._relative(length, causal=True) if self._relative else None

        def own(index: int, attention: MultiHeadAttention, x: Array) -> tuple[Array, Remembered]:
            start = Start(bound=length)
            q, (k, v) = attention.queries(x, start), attention.keys_and_values(x, start)
            sight = Sight.of(attention.config, segments, prefix)
            mixed = attend(q, k, v, attention.config, self._execution, sight=sight, bias=bias)
            slots = _slots(attention.config, capacity)
            return mixed, Remembered(keys=_ring(k, slots), values=_ring(v, slots))

        places = jnp.maximum(jnp.arange(length)[None, :] - first[:, None], 0)
        return self._read(tokens, places, cache, own)

    def extend(self, cache: Cache, tokens: Int[Array, "batch 1"]) -> tuple[Float[Array, "batch 1 embed"], Cache]:
        """Reads one more token of each row.

        The caller sees to it that there is room: beyond the capacity, early places would be overwritten.

        Returns:
            The residual stream before the head, and the cache with the token's keys and values.
        """
        start, execution = Start(place=cache.place, bound=cache.capacity), replace(self._execution, kernel=Kernel.DENSE)

        def own(index: int, attention: MultiHeadAttention, x: Array) -> tuple[Array, Remembered]:
            config = attention.config
            seen = cache.own[index].put(*attention.keys_and_values(x, start), cache.place)
            distance = (cache.place - jnp.arange(seen.slots)) % seen.slots
            visible = (cache.place - distance)[None, :] >= cache.first[:, None]  # written, and no padding
            sight = Sight.whole(jnp.ones_like(cache.first)[:, None], visible.astype(jnp.int32))
            bias = self._relative.back(distance, bound=cache.capacity) if self._relative else None
            if config.positions is Positions.ALIBI:
                slopes = alibi_slopes(config.heads).reshape(config.kv_heads, -1, 1, 1)
                bias = -slopes * distance[None, None, None, :]
            unplaced = replace(config, positions=Positions.NONE)
            q = attention.queries(x, start)
            return attend(q, seen.keys, seen.values, unplaced, execution, sight=sight, bias=bias), seen

        places = jnp.maximum(cache.place - cache.first, 0)[:, None]
        return self._read(tokens, places, replace(cache, place=cache.place + 1), own)

    def _read(
        self,
        tokens: Int[Array, "batch length"],
        places: Int[Array, "batch length"],
        cache: Cache,
        own: Callable[[int, MultiHeadAttention, Array], tuple[Array, Remembered]],
    ) -> tuple[Float[Array, "batch length embed"], Cache]:
        """Through all blocks, with `own` in place of each attention to earlier places."""
        x = self._prelude(self._model.table, tokens, positions=places)
        remembered = []
        for index, block in enumerate(self._blocks):

            def mixer(x, index=index, attention=block.mixer, **_):
                mixed, seen = own(index, attention, x)
                remembered.append(seen)
                return attention.outputs(mixed)

            parts = {"mixer": mixer}
            if cache.memory:
                parts["cross"] = lambda x, index=index, block=block, **_: self._cross(block.cross, x, cache, index)
            x = _with_parts(block, parts)(x, segments=None)
        return x if self._norm is None else self._norm(x), replace(cache, own=tuple(remembered))

    def _cross(self, attention: MultiHeadAttention, x: Array, cache: Cache, index: int) -> Array:
        """Attention to the encoder's output."""
        memory, queries = cache.memory[index], None
        if cache.memory_segments is not None:
            queries = jnp.broadcast_to(jnp.ones_like(cache.first)[:, None], x.shape[:2])
        sight = Sight.whole(queries, cache.memory_segments)
        q = attention.queries(x, None)
        mixed = attend(q, memory.keys, memory.values, attention.config, self._execution, sight=sight)
        return attention.outputs(mixed)


def _slots(config: Attention, capacity: int) -> int:
    return capacity if config.window is None else min(config.window, capacity)


def _ring(x: Float[Array, "batch kv_heads length head_dim"], slots: int) -> Array:
    """What remains of a piece that began at place 0, each place in its slot."""
    length = x.shape[2]
    if length <= slots:
        return jnp.pad(x, ((0, 0), (0, 0), (0, slots - length), (0, 0)))
    kept, turn = x[:, :, length - slots :], length % slots
    return jnp.concatenate([kept[:, :, slots - turn :], kept[:, :, : slots - turn]], axis=2)


def _with_parts(block: ResidualBlock, parts: dict[str, Callable]) -> nnx.Module:
    """A block with some parts replaced; the one given stays as it is."""
    other = jax.tree.map(lambda leaf: leaf, block)
    for name, part in parts.items():
        setattr(other, name, part)
    return other
