"""Digests of arrays, by which a flipped bit is noticed: computed where the arrays are, whatever the mesh."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


def digest(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """A 32-bit digest of the bits of an array: the same on every mesh, different after any single bit flip.

    The sum, modulo 2^32, of every element's bits times an odd weight made from its position. A flip of bit k changes
    the sum by ±2^k times an odd number, which is never 0 modulo 2^32; the weights make exchanged elements show as well.
    Integer addition is associative, so the order of reduction, and with it the sharding, has no influence.
    """
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint32)
    else:
        width = min(
            jnp.finfo(array.dtype).bits if jnp.issubdtype(array.dtype, jnp.floating) else jnp.iinfo(array.dtype).bits,
            32,
        )
        bits = jax.lax.bitcast_convert_type(array, f"uint{width}").astype(jnp.uint32)
    position = jnp.zeros((1,) * bits.ndim, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = jnp.arange(size, dtype=jnp.uint32).reshape([size if a == axis else 1 for a in range(bits.ndim)])
        position = position * jnp.uint32(size % 2**32) + index
    # Knuth's multiplicative hash spreads neighbouring positions over all 32 bits.
    weight = (position * jnp.uint32(2654435761)) | jnp.uint32(1)
    return jnp.sum(bits * weight, dtype=jnp.uint32)


@jax.jit
def _digests(arrays: list[Array]) -> list[UInt32[Array, ""]]:
    return [digest(array) for array in arrays]


def describe(leaves: dict[str, Shaped[Array, "..."]]) -> dict[str, list]:
    """Type, shape and digest of every leaf, as JSON can hold them."""
    # One jitted call for each set of devices: a call may not mix arrays that live on different ones.
    groups: dict[frozenset, list[str]] = {}
    for name, leaf in leaves.items():
        groups.setdefault(frozenset(leaf.sharding.device_set), []).append(name)
    digests: dict[str, int] = {}
    for names in groups.values():
        values = jax.device_get(_digests([leaves[name] for name in names]))
        digests |= {name: int(value) for name, value in zip(names, values, strict=True)}
    return {name: [str(leaf.dtype), list(leaf.shape), digests[name]] for name, leaf in leaves.items()}
