"""A mixture of experts: many MLPs, of which a router picks a few for each token (Shazeer et al. 2017)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard
from jaxtyping import Array, Float, Int

from models.cost import Cost
from models.execution import Dispatch, Execution
from models.feedforward import MLP, Form
from models.identity import ADDED
from models.layers import RESIDUAL, Role, parameter, use
from parallel import pipeline
from parallel.dispatch import Sent, everywhere, exchanged, in_buffers, in_order, seats

OF_RUNS = {Dispatch.RAGGED: in_order, Dispatch.EXCHANGE: exchanged}
"""Ways whose products are of runs of tokens, one for each expert; how many there are nobody knows beforehand."""

_TILE, _TILE_ROWS = 512, 128  # sides of what a fused kernel multiplies at a time: most of them, and fewest rows


@dataclass(frozen=True, kw_only=True)
class Experts:
    """MLPs of one kind, and a router that sends each token to `chosen` of them.

    A token's output is the mean of its experts' outputs, weighted by their probabilities. Without a capacity no expert
    is ever full: every token reaches those it was sent to, whatever else is in the batch. With one, seats go to the
    tokens of a row as they come, and an expert that a token no longer finds a seat with adds nothing to it. So a row
    depends on no other row, on no mesh and on nothing that comes later in it; but documents packed into a row share
    its seats, and a text written token by token never finds an expert full.

    Attributes:
        mlp: an expert, without biases.
        count: number of experts.
        chosen: how many of them each token uses.
        balance: weight, in the training loss, of how unevenly each layer uses its experts (Fedus et al. 2022, equation
            4, with a token counted for each expert it goes to).
        capacity: seats of an expert for each row, over those it would fill if all were used alike (the capacity factor
            of Lepikhin et al. 2021, whose groups are the rows here); None for no limit.
    """

    mlp: MLP
    count: int
    chosen: int
    balance: float = 0.01
    capacity: float | None = field(default=None, metadata=ADDED)

    def __post_init__(self):
        if not 1 <= self.chosen <= self.count:
            raise ValueError(f"experts: {self.chosen} of {self.count} experts cannot be chosen")
        if self.mlp.biases:
            raise ValueError("experts: their products have no biases")
        if self.capacity is not None and not self.capacity > 0:
            raise ValueError(f"experts: a capacity of {self.capacity} leaves no seats; want a factor such as 1.25")

    @property
    def hidden(self) -> int:
        """Hidden units of an expert."""
        return self.mlp.hidden

    def build(self, width: int, *, depth_scale: float, std: float | None, execution: Execution) -> nnx.Module:
        """The module, for a residual stream of `width`."""
        return MixtureOfExperts(self, width, depth_scale=depth_scale, std=std, execution=execution)

    def cost(self, width: int, length: int) -> Cost:
        """Parameters, those that a token does not use among them, and FLOPs per token: of the experts it is sent to.

        Whether or not it finds a seat there.
        """
        router = Cost(weights=width * self.count, matmul_flops=2.0 * width * self.count)
        one = self.mlp.cost(width, length)
        experts = replace((one * self.count).times(self.chosen / self.count), idle=one.weights * self.unused)
        return router + experts

    def seats(self, length: int) -> int:
        """Seats of an expert for a row of `length` tokens."""
        if self.capacity is None:
            return length
        return min(length, math.ceil(self.capacity * self.chosen * length / self.count))

    @property
    def unused(self) -> int:
        """How many experts a token does not use."""
        return self.count - self.chosen


class MixtureOfExperts(nnx.Module):
    """The module of `Experts`.

    `models.execution.Dispatch` says how tokens reach them. Which of a token's experts had a seat for it has the name
    "kept" (`models.observe`), where there is a capacity.

    Raises:
        ValueError: for ragged products in the stages of a pipeline.
    """

    def __init__(self, config: Experts, width: int, *, depth_scale: float, std: float | None, execution: Execution):
        self.config, self.execution = config, execution
        self.dispatch = execution.dispatch or (Dispatch.DENSE if config.capacity is None else Dispatch.BUFFERS)
        if self.dispatch in OF_RUNS and execution.pipeline:  # JAX cannot lay them out under `vmap` over stages
            raise ValueError(
                "experts: ragged products cannot be computed in stages of a pipeline; choose 'buffers' or 'dense' "
                "(--placement.dispatch)"
            )
        count, hidden, into = config.count, config.hidden, std or width**-0.5
        wide, out = ("expert", "embed", "hidden"), (std or hidden**-0.5) * depth_scale
        self.router = parameter((width, count), ("embed", None), role=Role.KERNEL, std=into)
        self.up = parameter((count, width, hidden), wide, role=Role.KERNEL, std=into)
        gated = config.mlp.form is Form.GATED
        self.gate = parameter((count, width, hidden), wide, role=Role.KERNEL, std=into) if gated else None
        self.down = parameter((count, hidden, width), ("expert", "hidden", "embed"), role=Role.KERNEL, std=out)

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """The weighted mean of each token's experts."""
        return self.with_penalty(x)[0]

    def with_penalty(
        self, x: Float[Array, "batch length embed"]
    ) -> tuple[Float[Array, "batch length embed"], Float[Array, ""]]:
        """The same, and what uneven use of the experts adds to the training loss: `balance * chosen` at its least."""
        config, spec = self.config, self.execution.rules.spec
        probabilities = jax.nn.softmax(self._logits(x), axis=-1)
        shares, picked = jax.lax.top_k(probabilities, config.chosen)
        weights, taken = shares / shares.sum(axis=-1, keepdims=True), None
        if config.capacity is not None or self.dispatch is Dispatch.BUFFERS:
            taken = seats(reshard(picked, spec("batch", None, None)), config.count)
        if config.capacity is not None:
            kept = checkpoint_name(taken < config.seats(x.shape[1]), "kept")
            weights = weights * reshard(kept, spec("batch", "length", None))
        used = jax.nn.one_hot(picked, config.count).sum(axis=-2).mean(axis=(0, 1))
        penalty = config.balance * config.count * jnp.sum(used * probabilities.mean(axis=(0, 1)))
        return self._routed(x, picked, weights.astype(x.dtype), taken), penalty

    def _logits(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length experts"]:
        """In float32, because a choice hangs on small differences."""
        run = self.execution
        spec = run.rules.spec("batch", "length", None)
        return jnp.einsum(
            "bld,de->ble", x, use(self.router, run), out_sharding=spec, preferred_element_type=jnp.float32
        )

    def _routed(
        self,
        x: Float[Array, "batch length embed"],
        picked: Int[Array, "batch length chosen"],
        weights: Float[Array, "batch length chosen"],
        taken: Int[Array, "batch length chosen"] | None,
    ) -> Float[Array, "batch length embed"]:
        """Through the experts: each device with the tokens, the experts and the hidden units that it holds."""
        config, run, spec = self.config, self.execution, self.execution.rules.spec
        places = None if self.dispatch is Dispatch.BUFFERS else "length"  # seats are of whole rows
        axes = run.rules.axes("expert")

        def local(x, picked, weights, taken, kernels):
            mlp = partial(self._mlp, kernels)
            # Gradients of all shards of the hidden units are summed here, not where rows are many more.
            x, weights = (jax.lax.pcast(each, run.rules.axes("hidden"), to="varying") for each in (x, weights))
            sent = Sent(rows=x, picked=picked, weights=weights, groups=config.count, axes=axes)
            if self.dispatch is Dispatch.BUFFERS:
                compute = partial(mlp, partial(jnp.einsum, "becd,edh->bech"), partial(jnp.einsum, "bech,ehd->becd"))
                y = in_buffers(sent, compute, taken=taken, capacity=config.seats(x.shape[1]))
            elif self.dispatch in OF_RUNS:

                def compute(kernels, runs, weights, lengths):
                    product = partial(of_runs, lengths=lengths)
                    down = lambda hidden, down: product(hidden * weights[:, None], down)  # noqa: E731
                    return self._mlp(kernels, product, down, runs)

                y = OF_RUNS[self.dispatch](sent, compute, kernels)
            else:

                def compute(x, spread):
                    down = lambda hidden, down: jnp.einsum("bleh,ehd->bld", hidden * spread[..., None], down)  # noqa: E731
                    return mlp(partial(jnp.einsum, "bld,edh->bleh"), down, x)

                y = everywhere(sent, compute)
            return y[None]  # a part of the sum, for each shard of the hidden units

        tokens, choices = spec("batch", places, "embed"), spec("batch", places, None)
        into, out = spec("expert", "embed", "hidden"), spec("expert", "hidden", "embed")
        arrays = [reshard(x, tokens), reshard(picked, choices), reshard(weights, choices)]
        arrays.append(taken if self.dispatch is Dispatch.BUFFERS else None)
        kernels = (use(self.up, run), None if self.gate is None else use(self.gate, run), use(self.down, run))
        y = pipeline.local(
            local,
            in_specs=(tokens, choices, choices, choices, (into, into, out)),
            out_specs=spec("hidden", "batch", places, "embed"),
            staged=bool(run.rules.layers),
            check_vma=self.dispatch not in OF_RUNS,  # a fused kernel's result does not say along which axes it varies
        )(*arrays, kernels)
        return reshard(jax.lax.reduce_sum(y, axes=(0,)), spec(*RESIDUAL))

    def _mlp(self, kernels, into: Callable, out: Callable, rows: Array) -> Array:
        """Experts on rows, by products that know which rows are whose."""
        up, gate, down = kernels
        hidden, activation = into(rows, up), self.config.mlp.activation
        return out(activation(hidden) if gate is None else activation(into(rows, gate)) * hidden, down)


@jax.custom_vjp
def of_runs(
    runs: Float[Array, "places into"], kernels: Float[Array, "experts into out"], lengths: Int[Array, " experts"]
) -> Float[Array, "places out"]:
    """The rows of each run by the kernel of its expert: `jax.lax.ragged_dot`, with a gradient of its own on TPUs.

    XLA computes the gradient of kernels as if every expert had all rows. There it is that of a fused kernel of JAX's,
    where it has those of its run (`gradient_of_kernels`).
    """
    return jax.lax.ragged_dot(runs, kernels, lengths)


def _of_runs_forward(runs, kernels, lengths):
    return of_runs(runs, kernels, lengths), (runs, kernels, lengths)


def _of_runs_backward(saved, gradient):
    runs, kernels, lengths = saved
    by_runs, by_kernels = jax.vjp(partial(jax.lax.ragged_dot, group_sizes=lengths), runs, kernels)[1](gradient)
    if len(runs) % _TILE_ROWS == 0:
        by_kernels = jax.lax.platform_dependent(
            runs, gradient, lengths, tpu=gradient_of_kernels, default=lambda *arrays: by_kernels
        )
    return by_runs, by_kernels, None


of_runs.defvjp(_of_runs_forward, _of_runs_backward)


def gradient_of_kernels(
    runs: Float[Array, "places into"],
    gradient: Float[Array, "places out"],
    lengths: Int[Array, " experts"],
    *,
    interpret: bool = False,
) -> Float[Array, "experts into out"]:
    """Products of the rows of each run and their gradients, by a fused kernel for TPUs (Gale et al. 2022).

    Args:
        runs: what kernels were multiplied with; a multiple of 128 places.
        gradient: of the products.
        lengths: of the runs. Places after the last are in none of the products.
        interpret: run it step by step where there is no TPU, for tests.
    """
    # Not at the top: a second of importing that only TPUs need.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tiles = math.gcd(len(runs), _TILE), min(runs.shape[1], _TILE), min(gradient.shape[1], _TILE)
    return tgmm(runs.T, gradient, lengths, preferred_element_type=runs.dtype, tiling=tiles, interpret=interpret)
