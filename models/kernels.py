"""Attention by fused kernels of libraries: NVIDIA's through JAX, and the splash kernel of JAX for TPUs.

Each device attends to its own rows and heads, so kernels run inside `jax.shard_map` and know nothing of the mesh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jaxtyping import Array, Float, Int

from models.execution import Execution, Kernel
from models.positions import Positions
from parallel import pipeline

if TYPE_CHECKING:
    from models.attention import Attention, Sight

QUERIES = ("batch", "kv_heads", "groups", "length", "head_dim")
KEYS = ("batch", "kv_heads", "length", "head_dim")

_LANES = 128  # splash works on blocks of so many places


def misfit(kernel: Kernel, config: Attention, *lengths: int) -> str:
    """What a kernel lacks that a configuration asks on rows of such lengths; empty if nothing."""
    lacks = {"ALiBi": config.positions is Positions.ALIBI, "dropout": config.dropout > 0}
    if kernel is Kernel.SPLASH:
        odd = [length for length in lengths if length % _LANES]
        lacks[f"rows of {' and '.join(map(str, odd))} tokens, only multiples of {_LANES}"] = bool(odd)
    else:
        lacks["score cap"] = config.score_cap is not None
    return ", ".join(name for name, lacking in lacks.items() if lacking)


def attend(
    q: Float[Array, "batch kv_heads groups queries head_dim"],
    k: Float[Array, "batch kv_heads keys head_dim"],
    v: Float[Array, "batch kv_heads keys head_dim"],
    config: Attention,
    execution: Execution,
    sight: Sight,
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "batch kv_heads groups queries head_dim"]:
    """What `models.attention.attend` computes, by the execution's kernel.

    Args:
        q: queries.
        k: keys.
        v: values.
        config: the attention.
        execution: names the kernel.
        sight: which keys each query sees.
        scale: factor of scores.
        interpret: run splash step by step where there is no TPU, for tests.

    Raises:
        ValueError: if the kernel cannot do it.
    """
    if lacking := misfit(execution.kernel, config, q.shape[3], k.shape[2]):
        raise ValueError(
            f"attention kernel '{execution.kernel.value}' has no {lacking}; choose 'blocks' or 'dense' "
            "(--placement.kernel)"
        )

    def local(q, k, v, queries=None, keys=None):
        if execution.kernel is Kernel.SPLASH:
            return _splash(q * scale, k, v, config, sight, queries, keys, interpret=interpret)
        return _through_jax(q, k, v, execution, sight, queries, keys, scale=scale)

    spec = execution.rules.spec
    segments = [array for array in (sight.queries, sight.keys) if array is not None]
    specs = [spec(*QUERIES), spec(*KEYS), spec(*KEYS), *[spec("batch", "length")] * len(segments)]
    # A kernel's result does not say along which axes it varies, so that is not checked for splash.
    checked = execution.kernel is not Kernel.SPLASH
    told = dict(in_specs=tuple(specs), out_specs=spec(*QUERIES), staged=bool(execution.rules.layers))
    return pipeline.local(local, **told, check_vma=checked)(q, k, v, *segments)


def _through_jax(q, k, v, execution: Execution, sight: Sight, queries, keys, *, scale: float):
    """`jax.nn.dot_product_attention`, which has heads behind places."""
    batch, kv, groups, length, dim = q.shape
    window = None if sight.back is None else (sight.back, sight.back if sight.ahead is None else sight.ahead)
    out = jax.nn.dot_product_attention(
        q.reshape(batch, kv * groups, length, dim).swapaxes(1, 2),
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        mask=None if queries is None else (queries[:, None, :, None] == keys[:, None, None, :]),
        is_causal=sight.ahead == 0,
        local_window_size=window,
        scale=scale,
        implementation="cudnn" if execution.kernel is Kernel.CUDNN else "xla",
    )
    return out.swapaxes(1, 2).reshape(batch, kv, groups, length, dim)


def _splash(
    q: Float[Array, "batch kv_heads groups queries head_dim"],
    k: Float[Array, "batch kv_heads keys head_dim"],
    v: Float[Array, "batch kv_heads keys head_dim"],
    config: Attention,
    sight: Sight,
    queries: Int[Array, "batch queries"] | None,
    keys: Int[Array, "batch keys"] | None,
    *,
    interpret: bool,
) -> Float[Array, "batch kv_heads groups queries head_dim"]:
    """The splash kernel, a program for each row and key head; skips blocks of keys that no query of a block sees."""
    # Not at the top: a second of importing that only TPUs need.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (q.shape[3], k.shape[2])
    if sight.back is not None:
        mask = masks.LocalMask(shape, (sight.back, sight.ahead), 0)
    else:
        mask = masks.CausalMask(shape) if sight.ahead == 0 else masks.FullMask(shape)
    blocks = [max(size for size in (512, 256, _LANES) if side % size == 0) for side in shape]
    kernel = splash.make_splash_mqa(
        masks.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=blocks[0], block_kv=blocks[1], block_kv_compute=blocks[1],
            block_q_dkv=blocks[0], block_kv_dkv=blocks[1], block_kv_dkv_compute=blocks[1],
            block_q_dq=blocks[0], block_kv_dq=blocks[1],
        ),
        attn_logits_soft_cap=config.score_cap,
        head_shards=1, q_seq_shards=1, interpret=interpret,
    )  # fmt: skip
    segments = None if queries is None else splash.SegmentIds(q=queries, kv=keys)
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    return jax.vmap(heads, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments).astype(v.dtype)
