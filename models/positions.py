"""How a model knows the order of tokens: at the embedding (learned, sinusoidal) or inside attention (rotary, ALiBi)."""

from enum import Enum

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Positions(Enum):
    """Where order comes from.

    `learned` (Radford et al. 2018) and `sinusoidal` (Vaswani et al. 2017) are added to the embedding, `rotary` (Su et
    al. 2021) turns queries and keys, `alibi` (Press et al. 2021) lowers scores by distance; `none` leaves it to
    causality.
    """

    NONE = "none"
    LEARNED = "learned"
    SINUSOIDAL = "sinusoidal"
    ROTARY = "rotary"
    ALIBI = "alibi"


def sinusoidal(positions: Int[Array, "batch length"], size: int) -> Float[Array, "batch length size"]:
    """Sines in the first half of the last axis and cosines in the second (Vaswani et al. 2017, section 3.5)."""
    half = size // 2
    rates = jnp.asarray(1e4 ** (-np.arange(half) / max(half, 1)), jnp.float32)
    angles = positions.astype(jnp.float32)[..., None] * rates[None, None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(
    x: Float[Array, "batch kv_heads groups length head_dim"], base: float
) -> Float[Array, "batch kv_heads groups length head_dim"]:
    """Rotary embedding by the place in the row (Su et al. 2021, equation 34; pairs are the two halves of the head).

    Only differences of places matter, so a packed document needs no places of its own.
    """
    length, half = x.shape[-2], x.shape[-1] // 2
    angles = np.arange(length)[:, None] * base ** (-np.arange(half) / half)
    shape = (1,) * (x.ndim - 2) + (length, half)
    cos = jnp.asarray(np.cos(angles), x.dtype).reshape(shape)
    sin = jnp.asarray(np.sin(angles), x.dtype).reshape(shape)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def alibi_slopes(heads: int) -> np.ndarray:
    """One slope a head, a geometric sequence from 2^(-8/heads) (Press et al. 2021, section 3).

    When `heads` is not a power of two, the sequence of the next lower power is filled up with every other slope of
    twice that power, as the authors do.
    """
    power = 2 ** int(np.log2(heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    more = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([slopes, more[: heads - power]]).astype(np.float32)
