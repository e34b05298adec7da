"""A mixture of experts: many MLPs, of which a router picks a few for each token (Shazeer et al. 2017)."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.cost import Cost
from models.execution import Execution
from models.feedforward import MLP, Form
from models.layers import Role, parameter, project, use


@dataclass(frozen=True, kw_only=True)
class Experts:
    """MLPs of one kind, and a router that sends each token to `chosen` of them.

    A token's output is the mean of its experts' outputs, weighted by their probabilities. No expert is ever full: every
    token reaches those it was sent to, whatever else is in the batch.

    Attributes:
        mlp: an expert, without biases.
        count: number of experts.
        chosen: how many of them each token uses.
        balance: weight, in the training loss, of how unevenly each layer uses its experts (Fedus et al. 2022, equation
            4, with a token counted for each expert it goes to).
    """

    mlp: MLP
    count: int
    chosen: int
    balance: float = 0.01

    def __post_init__(self):
        if not 1 <= self.chosen <= self.count:
            raise ValueError(f"experts: {self.chosen} of {self.count} experts cannot be chosen")
        if self.mlp.biases:
            raise ValueError("experts: their products have no biases")

    @property
    def hidden(self) -> int:
        """Hidden units of an expert."""
        return self.mlp.hidden

    def build(self, width: int, *, depth_scale: float, std: float | None, execution: Execution) -> nnx.Module:
        """The module, for a residual stream of `width`."""
        return MixtureOfExperts(self, width, depth_scale=depth_scale, std=std, execution=execution)

    def cost(self, width: int, length: int) -> Cost:
        """Parameters, those that a token does not use among them, and FLOPs per token: of the experts it is sent to."""
        router = Cost(weights=width * self.count, matmul_flops=2.0 * width * self.count)
        one = self.mlp.cost(width, length)
        experts = replace((one * self.count).times(self.chosen / self.count), idle=one.weights * self.unused)
        return router + experts

    @property
    def unused(self) -> int:
        """How many experts a token does not use."""
        return self.count - self.chosen


class MixtureOfExperts(nnx.Module):
    """The module of `Experts`.

    Every expert computes every token, and what was not chosen counts nothing: exact and with static shapes, at the
    price of `count / chosen` times the FLOPs that the cost counts.
    """

    def __init__(self, config: Experts, width: int, *, depth_scale: float, std: float | None, execution: Execution):
        self.config, self.execution = config, execution
        count, hidden, into = config.count, config.hidden, std or width**-0.5
        wide, out = ("expert", "embed", "hidden"), (std or hidden**-0.5) * depth_scale
        self.router = parameter((width, count), ("embed", "expert"), role=Role.KERNEL, std=into)
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
        config, run = self.config, self.execution
        probabilities = jax.nn.softmax(self._logits(x), axis=-1)
        picked = jax.nn.one_hot(jax.lax.top_k(probabilities, config.chosen)[1], config.count).sum(axis=-2)
        weights = probabilities * picked
        weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(x.dtype)
        wide = ("batch", "length", "expert", "hidden")
        up = project("bld,edh->bleh", x, self.up, wide, run)
        if self.gate is not None:
            up = config.mlp.activation(project("bld,edh->bleh", x, self.gate, wide, run)) * up
        else:
            up = config.mlp.activation(up)
        down = project("bleh,ehd->bld", up * weights[..., None], self.down, ("batch", "length", "embed"), run)
        used, expected = picked.mean(axis=(0, 1)), probabilities.mean(axis=(0, 1))
        return down, config.balance * config.count * jnp.sum(used * expected)

    def _logits(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length expert"]:
        """In float32, because a choice hangs on small differences."""
        run = self.execution
        spec = run.rules.spec("batch", "length", "expert")
        return jnp.einsum(
            "bld,de->ble", x, use(self.router, run), out_sharding=spec, preferred_element_type=jnp.float32
        )
