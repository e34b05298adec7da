"""How an architecture is computed. Nothing here changes what is computed, beyond rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import jax
import jax.numpy as jnp

from parallel.context import Context
from parallel.pipeline import Pipeline
from parallel.sharding import Rules


class Precision(Enum):
    """Type of activations and matrix products; parameters and their optimizer are float32 in either case."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Layers(Enum):
    """How repeated blocks run: a loop over one compiled body, or written out (faster on CPU, slower to compile)."""

    SCAN = "scan"
    UNROLL = "unroll"


class Remat(Enum):
    """What the backward pass finds saved; the rest it computes again.

    `dots` saves the products with weights, `attention` the output of each attention, `full` the inputs of blocks only.
    """

    NONE = "none"
    DOTS = "dots"
    ATTENTION = "attention"
    FULL = "full"


class Kernel(Enum):
    """Who computes attention.

    `blocks` cuts the queries into four and skips the keys they cannot see, or into two where they see all; `dense`
    does it at once; `cudnn` is NVIDIA's fused kernel through `jax.nn.dot_product_attention` (16-bit, GPU only);
    `reference` is that same path in plain XLA; `splash` is JAX's fused kernel for TPUs (rows of a multiple of 128
    tokens).
    """

    BLOCKS = "blocks"
    DENSE = "dense"
    CUDNN = "cudnn"
    REFERENCE = "reference"
    SPLASH = "splash"


class Dispatch(Enum):
    """How tokens reach the experts that they are sent to.

    `dense` computes every token by every expert and leaves out what was not asked for. `buffers` gives each expert as
    many seats for a row as the architecture says, or for a whole row where that says nothing: the products are of
    seats, empty ones included. `ragged` puts tokens in the order of their experts, and its products are of no other
    token: `jax.lax.ragged_dot`, which XLA computes so on TPUs, and elsewhere as if it were dense. None of these but
    `buffers` sends a token to the devices of its experts alone: all tokens come to all devices that share experts.
    `exchange` is `ragged` that does (by `jax.lax.ragged_all_to_all`; on a CPU only as if).
    """

    DENSE = "dense"
    BUFFERS = "buffers"
    RAGGED = "ragged"
    EXCHANGE = "exchange"


class Products(Enum):
    """How products of activations and matrices are written: over all their axes, or as products of two matrices."""

    WHOLE = "whole"
    FLAT = "flat"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to compute: layout, types, loops, what to save.

    Attributes:
        rules: which mesh axes carry which logical axes.
        precision: type of activations.
        layers: loop over repeated blocks or write them out. Parameters are stored the same way in both.
        products: how products are written; `flat` is faster on a CPU.
        remat: what is saved for the backward pass.
        kernel: attention implementation.
        context: how attention reaches across devices, where rules split the length of rows.
        logits_chunk: positions whose logits exist at a time in the loss; None for all of them.
        dispatch: how tokens reach experts; None for `buffers` where an architecture limits seats, else `dense`.
        pipeline: how batches go through stages, where rules split the layers; None for no stages.
    """

    rules: Rules = Rules()
    precision: Precision = Precision.FLOAT32
    layers: Layers = Layers.UNROLL
    products: Products = Products.WHOLE
    remat: Remat = Remat.NONE
    kernel: Kernel = Kernel.BLOCKS
    context: Context = Context.ULYSSES
    logits_chunk: int | None = None
    dispatch: Dispatch | None = None
    pipeline: Pipeline | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """The array type of activations."""
        return jnp.dtype(self.precision.value)

    @property
    def microbatches(self) -> int:
        """Parts that a batch is cut into where it goes through stages."""
        return self.pipeline.microbatches if self.pipeline else 1

    def checkpointed(self, function: Callable) -> Callable:
        """`function` with this choice of what to save for the backward pass."""
        if self.remat is Remat.NONE:
            return function
        policy = {
            Remat.FULL: None,
            Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            Remat.ATTENTION: jax.checkpoint_policies.save_only_these_names("attention"),
        }[self.remat]
        return jax.checkpoint(function, policy=policy)
