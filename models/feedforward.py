"""The position-wise half of a block: an MLP, plain or gated."""

from dataclasses import dataclass
from enum import Enum

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.cost import Cost
from models.execution import Execution
from models.layers import RESIDUAL, Role, add_bias, parameter, project


class Activation(Enum):
    """Non-linearity; `gelu` is the tanh form that GPT-2 uses, `gelu-exact` the error-function form.

    `gelu-sigmoid` is x sigmoid(1.702 x), the rougher of the approximations by Hendrycks and Gimpel (2016).
    """

    RELU = "relu"
    GELU = "gelu"
    GELU_EXACT = "gelu-exact"
    GELU_SIGMOID = "gelu-sigmoid"
    SILU = "silu"
    TANH = "tanh"

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Applies it."""
        return {
            Activation.RELU: jax.nn.relu,
            Activation.GELU: jax.nn.gelu,
            Activation.GELU_EXACT: _gelu_exact,
            Activation.GELU_SIGMOID: lambda x: x * jax.nn.sigmoid(1.702 * x),
            Activation.SILU: jax.nn.silu,
            Activation.TANH: jnp.tanh,
        }[self](x)


def _gelu_exact(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    if x.dtype != jnp.float32:  # 1 + erf(x) has no digits left where x is below -2
        return jax.nn.gelu(x, approximate=False)
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))  # of erfc, which the above is, XLA makes twice the work


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

    def build(self, width: int, *, depth_scale: float, std: float | None, execution: Execution) -> nnx.Module:
        """The module, for a residual stream of `width`."""
        return FeedForward(self, width, depth_scale=depth_scale, std=std, execution=execution)

    def cost(self, width: int, length: int) -> Cost:
        """Parameters and FLOPs per token."""
        products = 3 if self.form is Form.GATED else 2
        biases = ((products - 1) * self.hidden + width) if self.biases else 0
        matmul = products * width * self.hidden
        return Cost(weights=matmul + biases, matmul_flops=2.0 * matmul)


class FeedForward(nnx.Module):
    """The module of an `MLP`."""

    def __init__(self, config: MLP, width: int, *, depth_scale: float, std: float | None, execution: Execution):
        self.config, self.execution = config, execution
        hidden, gated = config.hidden, config.form is Form.GATED
        into, out = std or width**-0.5, (std or hidden**-0.5) * depth_scale

        def bias(size: int, axis: str) -> nnx.Param | None:
            return parameter((size,), (axis,), role=Role.BIAS) if config.biases else None

        self.up = parameter((width, hidden), ("embed", "hidden"), role=Role.KERNEL, std=into)
        self.up_bias = bias(hidden, "hidden")
        self.gate = parameter((width, hidden), ("embed", "hidden"), role=Role.KERNEL, std=into) if gated else None
        self.gate_bias = bias(hidden, "hidden") if gated else None
        self.down = parameter((hidden, width), ("hidden", "embed"), role=Role.KERNEL, std=out)
        self.down_bias = bias(width, "embed")

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Applies the MLP at every position."""
        wide, run = ("batch", "length", "hidden"), self.execution
        up = add_bias(project("bld,dh->blh", x, self.up, wide, run), self.up_bias, run)
        if self.config.form is Form.GATED:
            gate = add_bias(project("bld,dh->blh", x, self.gate, wide, run), self.gate_bias, run)
            up = self.config.activation(gate) * up
        else:
            up = self.config.activation(up)
        down = project("blh,hd->bld", up, self.down, RESIDUAL, run)
        return add_bias(down, self.down_bias, run)
