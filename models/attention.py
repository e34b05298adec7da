"""Attention: multi-head, grouped and multi-query, with masks as data and kernels behind one function.

Queries are laid out as `batch kv_heads groups length head_dim` from the projection on: `groups` queries share one key
and value head, so multi-head (groups 1), grouped and multi-query attention are one code path, and heads come before
length because that order is the fastest one on a CPU.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from models.cost import Cost, visible_pairs
from models.execution import Execution, Kernel
from models.layers import Norm, Normalize, Role, add_bias, dropout, parameter, project, soft_cap
from models.positions import Positions, alibi_slopes, rotate

QUERIES = ("batch", "kv_heads", "groups", "length", "head_dim")
KEYS = ("batch", "kv_heads", "length", "head_dim")
NEVER = -1e30  # a score that no softmax notices; finite, so that a row without any visible key is not NaN


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal self-attention.

    Attributes:
        heads: query heads.
        head_dim: size of a head.
        kv_heads: key and value heads, which divide `heads`: equal is multi-head, 1 is multi-query.
        positions: rotary, ALiBi, or none here (learned and sinusoidal positions belong to the embedding).
        rotary_base: longest period of the rotary embedding is 2 pi times this.
        qk_norm: norm of queries and keys before the product (Henry et al. 2020), or None.
        window: how many keys back a query sees, itself included; None for all.
        score_cap: soft cap of scores, or None.
        biases: whether products have biases.
        dropout: share of attention weights dropped in training.
    """

    heads: int
    head_dim: int
    kv_heads: int
    positions: Positions = Positions.NONE
    rotary_base: float = 10_000.0
    qk_norm: Norm | None = None
    window: int | None = None
    score_cap: float | None = None
    biases: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"attention: {self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.positions in (Positions.LEARNED, Positions.SINUSOIDAL):
            raise ValueError(f"attention: {self.positions.value} positions belong to the embedding, not to attention")
        if self.positions is Positions.ROTARY and self.head_dim % 2:
            raise ValueError(f"attention: rotary positions need an even head_dim, not {self.head_dim}")

    def build(self, width: int, *, depth_scale: float, std: float | None, execution: Execution) -> nnx.Module:
        """The module, for a residual stream of `width`."""
        return SelfAttention(self, width, depth_scale=depth_scale, std=std, execution=execution)

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token, counting the pairs of positions that the mask lets see each other."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matmul = 2 * width * queries + 2 * width * keys
        biases = (queries + 2 * keys + width) if self.biases else 0
        norms = self.qk_norm.cost(self.head_dim) * 2 if self.qk_norm else Cost()
        pairs = visible_pairs(length, window=self.window)
        return norms + Cost(weights=matmul + biases, matmul_flops=2.0 * matmul, attention_flops=4.0 * queries * pairs)


class SelfAttention(nnx.Module):
    """The module of an `Attention`."""

    def __init__(self, config: Attention, width: int, *, depth_scale: float, std: float | None, execution: Execution):
        self.config, self.execution = config, execution
        kv, groups, dim = config.kv_heads, config.heads // config.kv_heads, config.head_dim
        into, out = std or width**-0.5, (std or (config.heads * dim) ** -0.5) * depth_scale
        wide, narrow = ("kv_heads", "groups", "head_dim"), ("kv_heads", "head_dim")
        self.query = parameter((width, kv, groups, dim), ("embed", *wide), role=Role.KERNEL, std=into)
        self.key = parameter((width, kv, dim), ("embed", *narrow), role=Role.KERNEL, std=into)
        self.value = parameter((width, kv, dim), ("embed", *narrow), role=Role.KERNEL, std=into)
        self.out = parameter((kv, groups, dim, width), (*wide, "embed"), role=Role.KERNEL, std=out)

        def bias(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param | None:
            return parameter(shape, axes, role=Role.BIAS) if config.biases else None

        self.query_bias = bias((kv, groups, 1, dim), QUERIES[1:])
        self.key_bias = bias((kv, 1, dim), KEYS[1:])
        self.value_bias = bias((kv, 1, dim), KEYS[1:])
        self.out_bias = bias((width,), ("embed",))
        if config.qk_norm:
            self.query_norm = Normalize(config.qk_norm, dim, axis="head_dim", execution=execution)
            self.key_norm = Normalize(config.qk_norm, dim, axis="head_dim", execution=execution)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        *,
        segments: Int[Array, "batch length"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """Attends to earlier positions of the same segment.

        Args:
            x: the residual stream.
            segments: number of the document each position belongs to; None where a row is one document.
            key: randomness for dropout; None for none.
        """
        config, run = self.config, self.execution
        q = add_bias(project("bld,dkgh->bkglh", x, self.query, QUERIES, run), self.query_bias, run)
        k = add_bias(project("bld,dkh->bklh", x, self.key, KEYS, run), self.key_bias, run)
        v = add_bias(project("bld,dkh->bklh", x, self.value, KEYS, run), self.value_bias, run)
        if config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if config.positions is Positions.ROTARY:
            q = rotate(q, config.rotary_base)
            k = rotate(k[:, :, None], config.rotary_base)[:, :, 0]
        mixed = checkpoint_name(attend(q, k, v, config, run, segments=segments, key=key), "attention")
        out = project("bkglh,kghd->bld", mixed, self.out, ("batch", "length", "embed"), run)
        return add_bias(out, self.out_bias, run)


def attend(
    q: Float[Array, "batch kv_heads groups length head_dim"],
    k: Float[Array, "batch kv_heads length head_dim"],
    v: Float[Array, "batch kv_heads length head_dim"],
    config: Attention,
    execution: Execution,
    *,
    segments: Int[Array, "batch length"] | None = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch kv_heads groups length head_dim"]:
    """Weighted means of values, the weights a softmax of scaled products of queries and keys.

    Raises:
        ValueError: if the kernel cannot do what the configuration asks.
    """
    if execution.kernel in (Kernel.CUDNN, Kernel.REFERENCE):
        return _library_attention(q, k, v, config, execution, segments)
    length = q.shape[3]
    blocks = 4 if execution.kernel is Kernel.BLOCKS and length % 4 == 0 and length >= 64 else 1
    size = length // blocks
    slopes = None
    if config.positions is Positions.ALIBI:
        slopes = alibi_slopes(config.heads).reshape(config.kv_heads, -1)
    outputs = []
    # `split` rather than slices: its gradient is one concatenation.
    for block, queries in enumerate(jax.lax.split(q * q.shape[-1] ** -0.5, (size,) * blocks, axis=3)):
        start, end = block * size, (block + 1) * size
        first = 0 if config.window is None else max(0, start - config.window + 1)
        scores = jnp.einsum("bkgqh,bksh->bkgqs", queries, k[:, :, first:end])
        scores = soft_cap(scores.astype(jnp.float32), config.score_cap)
        if slopes is not None:
            distance = np.arange(start, end)[:, None] - np.arange(first, end)[None, :]
            scores = scores - jnp.asarray(slopes[None, :, :, None, None] * np.maximum(distance, 0)).astype(jnp.float32)
        mask = _visible(start, end, first, config.window)[None, None, None]
        if segments is not None:
            same = segments[:, start:end, None] == segments[:, None, first:end]
            mask = mask & same[:, None, None]
        scores = scores + jnp.where(mask, 0.0, NEVER)  # a sum, because its gradient is free
        # A softmax whose sum divides the result and not the weights: fewer passes over queries x keys, in both
        # directions (its gradient is then that of FlashAttention, Dao et al. 2022, appendix B).
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        weights = dropout(weights, config.dropout, None if key is None else jax.random.fold_in(key, start))
        mixed = jnp.einsum("bkgqs,bksh->bkgqh", weights.astype(v.dtype), v[:, :, first:end])
        outputs.append((mixed / total).astype(v.dtype))
    return jnp.concatenate(outputs, axis=3) if blocks > 1 else outputs[0]


def _visible(start: int, end: int, first: int, window: int | None) -> Bool[Array, "queries keys"]:
    """Which keys in [first, end) the queries in [start, end) see: themselves and before, within the window."""
    distance = jnp.arange(start, end)[:, None] - jnp.arange(first, end)[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def fits_library(config: Attention) -> bool:
    """Whether `jax.nn.dot_product_attention`, and so the cudnn kernel, can do what the configuration asks."""
    return config.positions is not Positions.ALIBI and config.score_cap is None and not config.dropout


def _library_attention(q, k, v, config: Attention, execution: Execution, segments):
    """`jax.nn.dot_product_attention` on each device's own rows and heads."""
    if not fits_library(config):
        raise ValueError(
            f"attention kernel '{execution.kernel.value}' has no ALiBi, score cap or dropout; "
            "choose 'blocks' or 'dense' (--placement.kernel)"
        )
    window = None if config.window is None else (config.window - 1, 0)

    def local(q, k, v, segments=None):
        batch, kv, groups, length, dim = q.shape
        q = q.reshape(batch, kv * groups, length, dim).swapaxes(1, 2)
        mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
        out = jax.nn.dot_product_attention(
            q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask, is_causal=True, local_window_size=window,
            implementation="cudnn" if execution.kernel is Kernel.CUDNN else "xla",
        )  # fmt: skip
        return out.swapaxes(1, 2).reshape(batch, kv, groups, length, dim)

    spec = execution.rules.spec
    arrays = [q, k, v] + ([] if segments is None else [segments])
    specs = [spec(*QUERIES), spec(*KEYS), spec(*KEYS), spec("batch", "length")][: len(arrays)]
    return jax.shard_map(local, in_specs=tuple(specs), out_specs=spec(*QUERIES))(*arrays)
