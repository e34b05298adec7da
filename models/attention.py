"""Attention: multi-head, grouped and multi-query, with masks as data and kernels behind one function.

Queries are laid out as `batch kv_heads groups length head_dim` from the projection on: `groups` queries share one key
and value head, so multi-head (groups 1), grouped and multi-query attention are one code path, and heads come before
length because that order is the fastest one on a CPU.
"""

from dataclasses import dataclass, replace
from enum import Enum

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard
from jaxtyping import Array, Bool, Float, Int, Key

from models import kernels
from models.cost import Cost, visible_pairs
from models.execution import Execution, Kernel
from models.kernels import KEYS, QUERIES
from models.layers import RESIDUAL, Norm, Normalize, Role, add_bias, dropout, parameter, project, soft_cap
from models.positions import Positions, Rotary, Start, alibi_slopes, rotate
from models.products import for_each_row
from parallel.context import UNSEEN, Context, Scores, exchanged, ring


class Visibility(Enum):
    """Which places a query may see: itself and earlier ones, or all."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"


class NormSpan(Enum):
    """What a norm of queries and keys is over: each head by itself, or all heads together."""

    HEAD = "head"
    HEADS = "heads"


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention of a sequence to itself, or to another one (the memory) in a block's `cross` branch.

    Attributes:
        heads: query heads.
        head_dim: size of a head.
        kv_heads: key and value heads, which divide `heads`: equal is multi-head, 1 is multi-query.
        visibility: which places a query sees; a memory is always seen whole.
        positions: rotary, ALiBi, or none here (learned and sinusoidal positions belong to the embedding).
        rotary: how rotary positions turn.
        qk_norm: norm of queries and keys before the product (Henry et al. 2020), or None.
        qk_norm_span: what that norm is over.
        window: how many keys back a query sees, itself included, and as many ahead where both directions are seen; None
            for all.
        scale: factor of scores; None for 1/sqrt(head_dim).
        score_cap: soft cap of scores, or None.
        biases: whether products have biases.
        dropout: share of attention weights dropped in training.
    """

    heads: int
    head_dim: int
    kv_heads: int
    visibility: Visibility = Visibility.CAUSAL
    positions: Positions = Positions.NONE
    rotary: Rotary = Rotary()
    qk_norm: Norm | None = None
    qk_norm_span: NormSpan = NormSpan.HEAD
    window: int | None = None
    scale: float | None = None
    score_cap: float | None = None
    biases: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"attention: {self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.positions in (Positions.LEARNED, Positions.SINUSOIDAL):
            raise ValueError(f"attention: {self.positions.value} positions belong to the embedding, not to attention")
        turned = self.rotary.dims or self.head_dim
        if self.positions is Positions.ROTARY and (turned % 2 or turned > self.head_dim):
            what = "head_dim" if self.rotary.dims is None else f"number of entries of a head of {self.head_dim}"
            raise ValueError(f"attention: rotary positions need an even {what}, not {turned}")

    @property
    def causal(self) -> bool:
        """Whether later places are hidden."""
        return self.visibility is Visibility.CAUSAL

    def build(self, width: int, *, depth_scale: float, std: float | None, execution: Execution) -> nnx.Module:
        """The module, for a residual stream of `width`."""
        return MultiHeadAttention(self, width, depth_scale=depth_scale, std=std, execution=execution)

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token, counting the pairs of positions that the mask lets see each other."""
        pairs = visible_pairs(length, window=self.window, causal=self.causal)
        return self._cost(width, pairs, memory_share=1.0)

    def cross_cost(self, width: int, length: int, memory: int) -> Cost:
        """Parameters and FLOPs per token where each of `length` tokens sees all of a memory of `memory` tokens."""
        return self._cost(width, float(memory), memory_share=memory / length)

    def _cost(self, width: int, pairs: float, *, memory_share: float) -> Cost:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = (queries + 2 * keys + width) if self.biases else 0
        spans = (self.head_dim, self.head_dim) if self.qk_norm_span is NormSpan.HEAD else (queries, keys)
        norms = sum((self.qk_norm.cost(span) for span in spans), Cost()) if self.qk_norm else Cost()
        own = Cost(weights=2 * width * queries, matmul_flops=4.0 * width * queries)
        read = Cost(weights=2 * width * keys, matmul_flops=4.0 * width * keys).times(memory_share)
        return own + read + norms + Cost(weights=biases, attention_flops=4.0 * queries * pairs)


class MultiHeadAttention(nnx.Module):
    """The module of an `Attention`."""

    def __init__(self, config: Attention, width: int, *, depth_scale: float, std: float | None, execution: Execution):
        self.config, self.execution = config, execution
        kv, groups, dim = config.kv_heads, config.heads // config.kv_heads, config.head_dim
        into, out = std or width**-0.5, (std or (config.heads * dim) ** -0.5) * depth_scale
        # Scores start at unit size whatever their factor.
        asking = into if std or config.scale is None else into * dim**-0.5 / config.scale
        wide, narrow = ("kv_heads", "groups", "head_dim"), ("kv_heads", "head_dim")
        self.query = parameter((width, kv, groups, dim), ("embed", *wide), role=Role.KERNEL, std=asking)
        self.key = parameter((width, kv, dim), ("embed", *narrow), role=Role.KERNEL, std=into)
        self.value = parameter((width, kv, dim), ("embed", *narrow), role=Role.KERNEL, std=into)
        self.out = parameter((kv, groups, dim, width), (*wide, "embed"), role=Role.KERNEL, std=out)

        def bias(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param | None:
            return parameter(shape, axes, role=Role.BIAS) if config.biases else None

        everywhere, anywhere = ("kv_heads", "groups", None, "head_dim"), ("kv_heads", None, "head_dim")
        self.query_bias = bias((kv, groups, 1, dim), everywhere)
        self.key_bias = bias((kv, 1, dim), anywhere)
        self.value_bias = bias((kv, 1, dim), anywhere)
        self.out_bias = bias((width,), ("embed",))
        if config.qk_norm:
            if config.qk_norm_span is NormSpan.HEAD:
                queries, keys = ((dim,), ("head_dim",)), ((dim,), ("head_dim",))
            else:
                queries, keys = ((kv, groups, 1, dim), everywhere), ((kv, 1, dim), anywhere)
            self.query_norm = Normalize(config.qk_norm, *queries, execution=execution)
            self.key_norm = Normalize(config.qk_norm, *keys, execution=execution)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        *,
        segments: Int[Array, "batch length"] | None = None,
        memory: Float[Array, "batch memory embed"] | None = None,
        memory_segments: Int[Array, "batch memory"] | None = None,
        prefix: Bool[Array, "batch length"] | None = None,
        bias: Float[Array, "kv_heads groups length length"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """Attends to positions of the same segment.

        Args:
            x: the residual stream.
            segments: number of the document each position belongs to; None where a row is one document.
            memory: what is attended to in place of `x`.
            memory_segments: number of the document of each position of the memory.
            prefix: positions that earlier ones see too; None for none.
            bias: added to scores.
            key: randomness for dropout; None for none.
        """
        config, source = self.config, (x if memory is None else memory)
        start = Start(bound=x.shape[1]) if memory is None else None
        q, (k, v) = self.queries(x, start), self.keys_and_values(source, start)
        sight = Sight.of(config, segments, prefix) if memory is None else Sight.whole(segments, memory_segments)
        mixed = attend(q, k, v, config, self.execution, sight=sight, bias=bias, key=key)
        return self.outputs(checkpoint_name(mixed, "attention"))

    def queries(
        self, x: Float[Array, "batch length embed"], start: Start | None
    ) -> Float[Array, "batch kv_heads groups length head_dim"]:
        """What is asked; `start` says where the piece begins, None that places do not count (of a memory)."""
        q = add_bias(
            project("bld,dkgh->bkglh", x, self.query, QUERIES, self.execution), self.query_bias, self.execution
        )
        if self.config.qk_norm:
            q = self.query_norm(q)
        return rotate(q, self.config.rotary, start) if self._turns(start) else q

    def keys_and_values(
        self, source: Float[Array, "batch length embed"], start: Start | None
    ) -> tuple[Float[Array, "batch kv_heads length head_dim"], Float[Array, "batch kv_heads length head_dim"]]:
        """What is attended to; `start` as for `queries`."""
        run = self.execution
        k = add_bias(project("bld,dkh->bklh", source, self.key, KEYS, run), self.key_bias, run)
        v = add_bias(project("bld,dkh->bklh", source, self.value, KEYS, run), self.value_bias, run)
        if self.config.qk_norm:
            k = self.key_norm(k)
        return (rotate(k[:, :, None], self.config.rotary, start)[:, :, 0] if self._turns(start) else k), v

    def outputs(
        self, mixed: Float[Array, "batch kv_heads groups length head_dim"]
    ) -> Float[Array, "batch length embed"]:
        """What `attend` returned, as it is added to the residual stream."""
        out = project("bkglh,kghd->bld", mixed, self.out, RESIDUAL, self.execution)
        return add_bias(out, self.out_bias, self.execution)

    def _turns(self, start: Start | None) -> bool:
        return start is not None and self.config.positions is Positions.ROTARY


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Which keys each query sees: those not too far away, of its own segment.

    Attributes:
        back: furthest place back, or None for no limit.
        ahead: furthest place ahead, or None for no limit.
        queries: segment of each query; None where nothing is hidden.
        keys: segment of each key.
        prefix: keys that every query of the segment sees, however far ahead; None for none.
    """

    back: int | None
    ahead: int | None
    queries: Int[Array, "batch queries"] | None
    keys: Int[Array, "batch keys"] | None
    prefix: Bool[Array, "batch keys"] | None = None

    @classmethod
    def of(
        cls,
        config: Attention,
        segments: Int[Array, "batch length"] | None,
        prefix: Bool[Array, "batch length"] | None = None,
    ) -> "Sight":
        """That of a sequence that attends to itself."""
        reach = None if config.window is None else config.window - 1
        ahead = 0 if config.causal else reach
        return cls(back=reach, ahead=ahead, queries=segments, keys=segments, prefix=prefix)

    @classmethod
    def whole(cls, queries: Int[Array, "batch queries"] | None, keys: Int[Array, "batch keys"] | None) -> "Sight":
        """That of a sequence that attends to another one; a document sees the one of the same number."""
        return cls(back=None, ahead=None, queries=queries, keys=keys)

    def span(self, start: int, end: int, length: int) -> tuple[int, int]:
        """First and last but one of the `length` keys that any query in [start, end) sees."""
        if self.prefix is not None:
            return 0, length
        first = 0 if self.back is None else max(0, start - self.back)
        return first, length if self.ahead is None else min(length, end + self.ahead)

    def mask(self, start: int, end: int, first: int, last: int) -> Bool[Array, "#batch queries keys"] | None:
        """Which keys in [first, last) the queries in [start, end) see; None for all."""
        visible = None
        ahead = np.arange(first, last)[None, :] - np.arange(start, end)[:, None]
        if self.ahead is not None:
            visible = ahead <= self.ahead
        if self.back is not None:
            visible = (True if visible is None else visible) & (-ahead <= self.back)
        if visible is not None:
            visible = jnp.asarray(visible)[None]
            if self.prefix is not None:
                visible = visible | self.prefix[:, None, first:last]
        if self.queries is not None and self.keys is not None:
            same = self.queries[:, start:end, None] == self.keys[:, None, first:last]
            visible = same if visible is None else visible & same
        return visible


def attend(
    q: Float[Array, "batch kv_heads groups queries head_dim"],
    k: Float[Array, "batch kv_heads keys head_dim"],
    v: Float[Array, "batch kv_heads keys head_dim"],
    config: Attention,
    execution: Execution,
    *,
    sight: Sight,
    bias: Float[Array, "kv_heads groups queries keys"] | None = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch kv_heads groups queries head_dim"]:
    """Weighted means of values, the weights a softmax of scaled products of queries and keys.

    Raises:
        ValueError: if the kernel cannot do what the configuration asks.
    """
    if execution.rules.length:
        return _across(q, k, v, config, execution, sight=sight, bias=bias, key=key)
    if execution.kernel not in (Kernel.BLOCKS, Kernel.DENSE):
        if bias is not None or sight.prefix is not None:
            raise ValueError(
                f"attention kernel '{execution.kernel.value}' has no relative bias and no prefix; choose 'blocks' or "
                "'dense' (--placement.kernel)"
            )
        return kernels.attend(q, k, v, config, execution, sight, scale=_scale(config))
    length = q.shape[3]
    limited = sight.ahead is not None or sight.back is not None
    cut = execution.kernel is Kernel.BLOCKS and length % 4 == 0 and length >= 64
    blocks = (4 if limited else 2) if cut else 1  # where no key can be skipped, it is for the processor's cache
    size = length // blocks
    slopes = _slopes(config)
    outputs = []
    # `split` rather than slices: its gradient is one concatenation.
    for block, queries in enumerate(jax.lax.split(q * _scale(config), (size,) * blocks, axis=3)):
        start, end = block * size, (block + 1) * size
        first, last = sight.span(start, end, k.shape[2])
        scores = jnp.einsum("bkgqh,bksh->bkgqs", queries, k[:, :, first:last])
        scores = soft_cap(scores.astype(jnp.float32), config.score_cap)
        if slopes is not None:
            distance = np.abs(np.arange(start, end)[:, None] - np.arange(first, last)[None, :])
            scores = scores - jnp.asarray(slopes[None, :, :, None, None] * distance).astype(jnp.float32)
        if bias is not None:
            scores = scores + for_each_row(bias[:, :, start:end, first:last], q.shape[0], execution).astype(jnp.float32)
        mask = sight.mask(start, end, first, last)
        if mask is not None:
            scores = scores + jnp.where(mask[:, None, None], 0.0, UNSEEN)  # a sum, because its gradient is free
        # A softmax whose sum divides the result and not the weights: fewer passes over queries x keys, in both
        # directions (its gradient is then that of FlashAttention, Dao et al. 2022, appendix B).
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        weights = dropout(weights, config.dropout, None if key is None else jax.random.fold_in(key, start))
        mixed = jnp.einsum("bkgqs,bksh->bkgqh", weights.astype(v.dtype), v[:, :, first:last])
        outputs.append((mixed / total).astype(v.dtype))
    return jnp.concatenate(outputs, axis=3) if blocks > 1 else outputs[0]


def _across(q, k, v, config: Attention, execution: Execution, *, sight: Sight, bias, key):
    """`attend` where the length of rows is split over devices."""
    mesh, groups = jax.sharding.get_abstract_mesh(), config.heads // config.kv_heads
    devices = execution.rules.shards("length", mesh)
    if execution.context is Context.RING:
        asked = {"dropout": config.dropout > 0 and key is not None, "relative bias": bias, "prefix": sight.prefix}
        if lacks := ", ".join(name for name, value in asked.items() if value is not None and value is not False):
            raise ValueError(
                f"ring attention has no {lacks}; exchange heads instead (--placement.context ulysses, with heads that "
                f"sequence={devices} divides)"
            )
        segments = None if sight.queries is None or sight.keys is None else (sight.queries, sight.keys)
        scores = Scores(scale=_scale(config), cap=config.score_cap, back=sight.back, ahead=sight.ahead)
        slopes = None if (slopes := _slopes(config)) is None else jnp.asarray(slopes)
        return ring(q, k, v, scores, rules=execution.rules, segments=segments, slopes=slopes)
    rules = exchanged(execution.rules, mesh, kv_heads=config.kv_heads, groups=groups)
    if rules is None:
        raise ValueError(
            f"{config.heads} heads ({config.kv_heads} key/value heads) cannot be exchanged between the devices of "
            f"sequence={devices}; choose a size that divides them, or --placement.context ring"
        )
    q, k, v = reshard(q, rules.spec(*QUERIES)), reshard(k, rules.spec(*KEYS)), reshard(v, rules.spec(*KEYS))
    told = {name: getattr(sight, name) for name in ("queries", "keys", "prefix")}
    told = {name: array if array is None else reshard(array, rules.spec("batch", None)) for name, array in told.items()}
    bias = bias if bias is None else reshard(bias, rules.spec("kv_heads", "groups", None, None))
    inside = replace(execution, rules=rules)
    mixed = attend(q, k, v, config, inside, sight=replace(sight, **told), bias=bias, key=key)
    return reshard(mixed, execution.rules.spec(*QUERIES))


def _slopes(config: Attention) -> Float[np.ndarray, "kv_heads groups"] | None:
    """What a place of distance lowers a score by; None without ALiBi."""
    if config.positions is not Positions.ALIBI:
        return None
    return alibi_slopes(config.heads).reshape(config.kv_heads, -1)


def _scale(config: Attention) -> float:
    return config.head_dim**-0.5 if config.scale is None else config.scale
