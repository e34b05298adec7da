"""The position-wise half of a block: an MLP, plain or gated."""

from dataclasses import dataclass
from enum import Enum

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from models.cost import Cost
from models.execution import Execution
from models.layers import Role, add_bias, parameter, project


class Activation(Enum):
    """Non-linearity; `gelu` is the tanh form that GPT-2 uses, `gelu-exact` the error-function form."""

    RELU = "relu"
    GELU = "gelu"
    GELU_EXACT = "gelu-exact"
    SILU = "silu"

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Applies it."""
        return {
            Activation.RELU: jax.nn.relu,
            Activation.GELU: jax.nn.gelu,
            Activation.GELU_EXACT: lambda x: jax.nn.gelu(x, approximate=False),
            Activation.SILU: jax.nn.silu,
        }[self](x)


class Form(Enum):
    """`plain` is `down(act(up x))`; `gated` is `down(act(gate x) * up x)` (Shazeer 2020: SwiGLU, GEGLU)."""

    PLAIN = "plain"
    GATED = "gated"


@dataclass(frozen=True, kw_only=True)
class MLP:
    """An MLP of `hidden` units.

    Attributes:
        hidden: hidden units.
        activation: the non-linearity.
        form: plain or gated.
        biases: whether products have biases.
    """

    hidden: int
    activation: Activation = Activation.GELU
    form: Form = Form.PLAIN
    biases: bool = False

    def build(self, width: int, *, depth_scale: float, std: float | None, key: Key[Array, ""], execution: Execution):
        """The module, for a residual stream of `width`."""
        return FeedForward(self, width, depth_scale=depth_scale, std=std, key=key, execution=execution)

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token."""
        products = 3 if self.form is Form.GATED else 2
        biases = ((products - 1) * self.hidden + width) if self.biases else 0
        matmul = products * width * self.hidden
        return Cost(weights=matmul + biases, matmul_flops=2.0 * matmul)


class FeedForward(nnx.Module):
    """The module of an `MLP`."""

    def __init__(
        self,
        config: MLP,
        width: int,
        *,
        depth_scale: float,
        std: float | None,
        key: Key[Array, ""],
        execution: Execution,
    ):
        self.config, self.execution = config, execution
        rules, hidden = execution.rules, config.hidden
        keys = jax.random.split(key, 3)
        into = std or width**-0.5
        kernel = dict(role=Role.KERNEL, rules=rules)
        self.up = parameter(keys[0], (width, hidden), ("embed", "hidden"), std=into, **kernel)
        if config.form is Form.GATED:
            self.gate = parameter(keys[1], (width, hidden), ("embed", "hidden"), std=into, **kernel)
        out = (std or hidden**-0.5) * depth_scale
        self.down = parameter(keys[2], (hidden, width), ("hidden", "embed"), std=out, **kernel)
        bias = dict(role=Role.BIAS, rules=rules)
        self.up_bias = parameter(None, (hidden,), ("hidden",), **bias) if config.biases else None
        self.gate_bias = (
            parameter(None, (hidden,), ("hidden",), **bias) if config.biases and config.form is Form.GATED else None
        )
        self.down_bias = parameter(None, (width,), ("embed",), **bias) if config.biases else None

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Applies the MLP at every position."""
        wide, run = ("batch", "length", "hidden"), self.execution
        up = add_bias(project("bld,dh->blh", x, self.up, wide, run), self.up_bias, run)
        if self.config.form is Form.GATED:
            gate = add_bias(project("bld,dh->blh", x, self.gate, wide, run), self.gate_bias, run)
            up = self.config.activation(gate) * up
        else:
            up = self.config.activation(up)
        down = project("blh,hd->bld", up, self.down, ("batch", "length", "embed"), run)
        return add_bias(down, self.down_bias, run)
