"""Normal numbers for initial values: the same on every mesh, and quick to compile.

The generator is Threefry-2x32 with 20 rounds (Salmon et al. 2011), the one behind `jax.random`: each number is a
function of a key and of its own place, so a device draws its shard and nothing else. It is written out here because
JAX lowers it on a CPU to a loop that takes XLA most of a second to compile, once a parameter; written out, it is a
single pass over the array, which compiles six times and runs three times as fast.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, UInt32

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]  # 64 bits, as a key, a counter or what is drawn for it


def split(key: Key[Array, ""], count: int) -> list[Words]:
    """The keys of `jax.random.split(key, count)`, as words."""
    words = jax.random.key_data(key)
    first, second = threefry((words[0], words[1]), (jnp.zeros(count, jnp.uint32), jnp.arange(count, dtype=jnp.uint32)))
    return [(first[index], second[index]) for index in range(count)]


def normal(key: Words, shape: tuple[int, ...], spec: PartitionSpec) -> Float[Array, "*shape"]:
    """Draws from the standard normal distribution, laid out by `spec`.

    The counter of an entry is its index along the first axis, and its place among the entries that share it: a layer's
    values do not depend on how many layers there are.

    Raises:
        ValueError: if more than 2^32 entries share an index, which a counter cannot tell apart.
    """
    if np.prod(shape[1:], dtype=np.float64) > 2**32:
        raise ValueError(f"a parameter of shape {shape} has more than 2^32 entries for each index of its first axis")
    index = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=spec) for axis in range(len(shape))]
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    place = sum((i * np.uint32(stride) for i, stride in zip(index[1:], strides[1:], strict=True)), np.uint32(0))
    first, second = threefry(key, (index[0], place))
    # 23 bits are the fraction of a float in [1, 2), which is stretched over (-1, 1) and sent through the inverse error
    # function, as in `jax.random.normal`.
    fraction = jax.lax.bitcast_convert_type(((first ^ second) >> 9) | np.uint32(0x3F800000), jnp.float32) - 1.0
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, fraction * (1 - low) + low)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)


def threefry(key: Words, counter: Words) -> Words:
    """Threefry-2x32-20 (Salmon et al. 2011, section 3.2 and table 2): the block cipher's 64 bits for each counter."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y
