"""Parameters, products, norms: the few operations every module is made of.

Every parameter is declared with its shape, its logical axes, its role and its initialiser; `initialize` then brings all
of them into being in the shardings they rest in. Products take the layout of their result by logical axes; nothing else
in `models/` names a sharding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard
from jaxtyping import Array, Float, Key

from models.cost import Cost
from models.execution import Execution
from models.identity import ADDED
from models.normal import Words, normal, split
from models.products import product, written
from parallel.sharding import Rules, is_variable

RESIDUAL = ("batch", "stream", "embed")
"""Logical axes of the residual stream."""


class Role(Enum):
    """What a parameter is: it decides whether weight decay applies (not to biases and scales) and how it counts."""

    KERNEL = "kernel"
    EMBEDDING = "embedding"
    POSITION = "position"
    HEAD = "head"
    BIAS = "bias"
    SCALE = "scale"


def parameter(
    shape: Sequence[int], axes: Sequence[str | None], *, role: Role, std: float | None = None, constant: float = 0.0
) -> nnx.Param:
    """Declares a float32 parameter, which `initialize` fills in.

    Args:
        shape: sizes, one for each of `axes`.
        axes: logical axes, the words of `parallel.sharding.Rules`; None for one that is never split.
        role: what the parameter is.
        std: standard deviation of the normal initialiser.
        constant: the initial value everywhere, where there is no `std`.
    """
    value = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return nnx.Param(value, axes=tuple(axes), role=role, std=std, constant=constant)


def repeated(module: nnx.Module, times: int) -> nnx.Module:
    """The same declared parameters with a leading axis `layers` of size `times`."""

    def one(param: nnx.Param) -> nnx.Param:
        declared = {name: param.get_metadata(name) for name in ("role", "std", "constant")}
        return parameter((times, *param.shape), ("layers", *param.get_metadata("axes")), **declared)

    return jax.tree.map(one, module, is_leaf=is_variable)


def initialize(module: nnx.Module, key: Key[Array, ""], rules: Rules) -> nnx.Module:
    """A module whose declared parameters have their initial values, each in its resting sharding.

    Every parameter is one draw of its whole shape (`models.normal`): the values do not depend on the mesh, nor a
    layer's on whether layers are looped over. Declaring first, and drawing without keys split at every level, keeps the
    program small.
    """
    params, structure = jax.tree.flatten(module, is_leaf=is_variable)
    keys = split(key, len(params))

    def draw(param: nnx.Param, key: Words) -> nnx.Param:
        spec, std = rules.resting_spec(*param.get_metadata("axes")), param.get_metadata("std")
        if std is None:
            return param.replace(jnp.full(param.shape, param.get_metadata("constant"), param.dtype, out_sharding=spec))
        return param.replace(std * normal(key, param.shape, spec))

    return jax.tree.unflatten(structure, [draw(param, key) for param, key in zip(params, keys, strict=True)])


def use(param: nnx.Param, execution: Execution) -> Array:
    """A parameter as it is computed with: in the working type, gathered over the axes it only rests on."""
    axes = param.get_metadata("axes")[-param.ndim :]  # inside a stack, one layer's share has lost its leading axis
    value = param[...].astype(execution.dtype)  # first the type, so that half the bytes are gathered
    return reshard(value, execution.rules.spec(*axes))


def project(equation: str, x: Array, kernel: nnx.Param, axes: Sequence[str | None], execution: Execution) -> Array:
    """`einsum(equation, x, kernel)` whose result has logical axes `axes`."""
    over = kernel.get_metadata("axes")[-kernel.ndim :]
    return written(product(equation, x, use(kernel, execution), axes, over, execution), execution)


def gathered(x: Float[Array, "batch length embed"], execution: Execution) -> Float[Array, "batch length embed"]:
    """The residual stream as a layer reads it, where between layers every tensor shard has a part of its length."""
    return reshard(x, execution.rules.spec("batch", "length", "embed"))


def add_bias(x: Array, bias: nnx.Param | None, execution: Execution) -> Array:
    """`x + bias` over the trailing axes of `x`; `x` itself where there is no bias."""
    if bias is None:
        return x
    value = use(bias, execution)
    return x + value.reshape((1,) * (x.ndim - value.ndim) + value.shape)


class NormForm(Enum):
    """Layer normalisation (Ba et al. 2016) or root-mean-square normalisation (Zhang and Sennrich 2019)."""

    LAYER = "layer"
    RMS = "rms"


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalisation, usually with a learned scale.

    Attributes:
        form: layer or root-mean-square normalisation.
        epsilon: added to the mean square.
        bias: whether layer normalisation also learns a shift.
        offset: what the learned scale is added to: with 1, as in Gemma, weight decay pulls towards no scaling.
        scales: whether a scale is learned; without one there is no shift either.
    """

    form: NormForm = NormForm.RMS
    epsilon: float = 1e-6
    bias: bool = True
    offset: float = 0.0
    scales: bool = field(default=True, metadata=ADDED)

    @property
    def shifts(self) -> bool:
        """Whether there is a shift."""
        return self.form is NormForm.LAYER and self.bias and self.scales

    def cost(self, size: int) -> Cost:
        """Its parameters: maybe a scale, maybe a shift."""
        return Cost(weights=size * (self.scales + self.shifts))


LAYER_NORM = Norm(form=NormForm.LAYER)
RMS_NORM = Norm(form=NormForm.RMS)


class Normalize(nnx.Module):
    """The module of a `Norm`: normalises in float32, maybe scales and shifts.

    It is over the last axes, as many as the scale has, but not over those without a name, along which a scale is one.
    """

    def __init__(self, norm: Norm, shape: Sequence[int], axes: Sequence[str | None], *, execution: Execution):
        self.norm, self.execution = norm, execution
        self.over = tuple(index - len(axes) for index, axis in enumerate(axes) if axis is not None)
        self.scale = parameter(shape, axes, role=Role.SCALE, constant=1.0 - norm.offset) if norm.scales else None
        self.shift = parameter(shape, axes, role=Role.BIAS) if norm.shifts else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns an array of the same shape and type."""
        norm, x32 = self.norm, x.astype(jnp.float32)
        if norm.form is NormForm.LAYER:
            x32 = x32 - x32.mean(axis=self.over, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=self.over, keepdims=True) + norm.epsilon)
        if self.scale is not None:
            x32 = x32 * self._whole(self.scale, x.ndim, norm.offset)
        if self.shift is not None:
            x32 = x32 + self._whole(self.shift, x.ndim)
        return written(x32.astype(x.dtype), self.execution)

    def _whole(self, param: nnx.Param, dims: int, offset: float = 0.0) -> Array:
        axes = param.get_metadata("axes")[-param.ndim :]
        value = reshard(param[...], self.execution.rules.spec(*axes))  # not in the working type, as `use` has it
        return (value + offset if offset else value).reshape((1,) * (dims - param.ndim) + param.shape)


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
