"""Parameters, products, norms: the few operations every module is made of.

Every parameter is declared with its shape, its logical axes, its role and its initialiser, and comes into being in the
sharding it rests in. Products take the layout of their result by logical axes; nothing else in `models/` names a
sharding.
"""

from collections.abc import Sequence
from enum import Enum

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard
from jaxtyping import Array, Float, Key

from models.cost import Cost
from models.execution import Execution
from parallel.sharding import Rules


class Role(Enum):
    """What a parameter is: it decides whether weight decay applies (not to biases and scales) and how it counts."""

    KERNEL = "kernel"
    EMBEDDING = "embedding"
    POSITION = "position"
    HEAD = "head"
    BIAS = "bias"
    SCALE = "scale"


def parameter(
    key: Key[Array, ""] | None,
    shape: Sequence[int],
    axes: Sequence[str],
    *,
    role: Role,
    rules: Rules,
    std: float | None = None,
    constant: float = 0.0,
) -> nnx.Param:
    """Declares a float32 parameter: normal with deviation `std`, or `constant` everywhere when `std` is None.

    Args:
        key: randomness; unused for a constant.
        shape: sizes, one for each of `axes`.
        axes: logical axes, the words of `parallel.sharding.Rules`.
        role: what the parameter is.
        rules: where it rests.
        std: standard deviation of the normal initialiser.
        constant: the value where there is no `std`.
    """
    spec = rules.resting_spec(*axes)
    if std is None:
        value = jnp.full(tuple(shape), constant, jnp.float32, out_sharding=spec)
    else:
        value = std * jax.random.normal(key, tuple(shape), jnp.float32, out_sharding=spec)
    return nnx.Param(value, axes=tuple(axes), role=role)


def use(param: nnx.Param, execution: Execution) -> Array:
    """A parameter as it is computed with: in the working type, gathered over the axes it only rests on."""
    axes = param.get_metadata("axes")[-param.ndim :]
    value = param[...].astype(execution.dtype)  # first the type, so that half the bytes are gathered
    return reshard(value, execution.rules.spec(*axes))


def project(equation: str, x: Array, kernel: nnx.Param, axes: Sequence[str], execution: Execution) -> Array:
    """`einsum(equation, x, kernel)` whose result has logical axes `axes`."""
    return jnp.einsum(equation, x, use(kernel, execution), out_sharding=execution.rules.spec(*axes))


def add_bias(x: Array, bias: nnx.Param | None, execution: Execution) -> Array:
    """`x + bias` over the trailing axes of `x`; `x` itself where there is no bias."""
    if bias is None:
        return x
    value = use(bias, execution)
    return x + value.reshape((1,) * (x.ndim - value.ndim) + value.shape)


class Norm(Enum):
    """Layer normalisation (Ba et al. 2016) or root-mean-square normalisation (Zhang and Sennrich 2019)."""

    LAYER = "layer"
    RMS = "rms"

    def cost(self, size: int) -> Cost:
        """Its parameters: a scale, and for `layer` a shift."""
        return Cost(weights=size * (2 if self is Norm.LAYER else 1))


class Normalize(nnx.Module):
    """Normalises the last axis in float32 and scales it (and shifts it, for `Norm.LAYER`)."""

    def __init__(self, norm: Norm, size: int, *, axis: str, execution: Execution):
        self.norm, self.execution = norm, execution
        self.scale = parameter(None, (size,), (axis,), role=Role.SCALE, rules=execution.rules, constant=1.0)
        if norm is Norm.LAYER:
            self.shift = parameter(None, (size,), (axis,), role=Role.BIAS, rules=execution.rules)

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        """Returns an array of the same shape and type."""
        x32 = x.astype(jnp.float32)
        if self.norm is Norm.LAYER:
            x32 = x32 - x32.mean(axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + 1e-6)
        scale = reshard(self.scale[...], self.execution.rules.spec(None))
        x32 = x32 * scale.reshape((1,) * (x.ndim - 1) + (-1,))
        if self.norm is Norm.LAYER:
            shift = reshard(self.shift[...], self.execution.rules.spec(None))
            x32 = x32 + shift.reshape((1,) * (x.ndim - 1) + (-1,))
        return x32.astype(x.dtype)


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Zeroes a share `rate` of the entries and scales up the rest; does nothing without a key (evaluation)."""
    if key is None or rate == 0.0:
        return x
    # Bits rather than `bernoulli`: they can be drawn in the sharding of x, the same on every mesh.
    bits = jax.random.bits(key, x.shape, jnp.uint32, out_sharding=jax.typeof(x).sharding)
    keep = bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """Bends values smoothly into (-cap, cap), as Gemma 2 does for attention scores and logits."""
    return x if cap is None else cap * jnp.tanh(x / cap)
