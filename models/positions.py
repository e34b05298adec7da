"""How a model knows the order of tokens: at the embedding (learned, sinusoidal) or inside attention (rotary, ALiBi).

The relative bias of T5 is inside attention too, but one table serves all blocks: it belongs to the stack.
"""

from dataclasses import dataclass
from enum import Enum

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import reshard
from jaxtyping import Array, Float, Int

from models.execution import Execution
from models.layers import Role, parameter


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


@dataclass(frozen=True, kw_only=True)
class LlamaScaling:
    """Slower rotation of long waves, so that a model trained on short rows reads long ones (Llama 3.1).

    Waves longer than `trained / low` are slowed by `factor`, those shorter than `trained / high` are left alone, and
    between the two the rate goes over linearly in `trained / wavelength`.

    Attributes:
        factor: how many times longer rows become.
        low: turns within the trained length up to which a wave is slowed in full.
        high: turns from which on it is left alone.
        trained: row length before.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    trained: int = 8_192

    def __call__(self, rates: np.ndarray) -> np.ndarray:
        """The rates, some of them slower."""
        turns = self.trained * rates / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return rates * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Slower rotation of all waves alike, as if places were closer together (Chen et al. 2023).

    Attributes:
        factor: how many times longer rows become.
    """

    factor: float = 8.0

    def __call__(self, rates: np.ndarray) -> np.ndarray:
        """The rates, slower."""
        return rates / self.factor


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """How queries and keys turn with the place (Su et al. 2021).

    Attributes:
        base: longest period is 2 pi times this.
        dims: entries of a head that turn, the first ones; None for all.
        scaling: change of the rates, or None.
    """

    base: float = 10_000.0
    dims: int | None = None
    scaling: LlamaScaling | LinearScaling | None = None

    def rates(self, dims: int) -> Float[np.ndarray, "dims//2"]:
        """Radians per place of each pair."""
        rates = self.base ** (-np.arange(dims // 2) / (dims // 2))
        return rates if self.scaling is None else self.scaling(rates)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a piece of a row begins: at its first place, or further on where what came before is remembered.

    Attributes:
        place: the piece's first place.
        bound: one more than the furthest place that any piece of the row can have.
    """

    place: Int[Array, ""] | int = 0
    bound: int

    def piece(self, table: Float[Array, "bound size"], length: int) -> Float[Array, "length size"]:
        """The rows of a table by place that belong to a piece of `length`."""
        if isinstance(self.place, int):
            return table[self.place : self.place + length]
        return jax.lax.dynamic_slice_in_dim(table, self.place, length)


def rotate(
    x: Float[Array, "batch kv_heads groups length head_dim"], rotary: Rotary, start: Start
) -> Float[Array, "batch kv_heads groups length head_dim"]:
    """Rotary embedding by the place in the row (Su et al. 2021, equation 34; pairs are the two halves of what turns).

    Only differences of places matter, so a packed document needs no places of its own.
    """
    length, dims = x.shape[-2], rotary.dims or x.shape[-1]
    half = dims // 2
    angles = np.arange(start.bound)[:, None] * rotary.rates(dims)
    shape = (1,) * (x.ndim - 2) + (length, half)
    cos = start.piece(jnp.asarray(np.cos(angles), x.dtype), length).reshape(shape)
    sin = start.piece(jnp.asarray(np.sin(angles), x.dtype), length).reshape(shape)
    first, second, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned if dims == x.shape[-1] else [*turned, rest], axis=-1)


def alibi_slopes(heads: int) -> np.ndarray:
    """One slope a head, a geometric sequence from 2^(-8/heads) (Press et al. 2021, section 3).

    When `heads` is not a power of two, the sequence of the next lower power is filled up with every other slope of
    twice that power, as the authors do.
    """
    power = 2 ** int(np.log2(heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    more = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([slopes, more[: heads - power]]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class RelativeBias:
    """A learned score for each head and each range of distances, the same in all blocks (Raffel et al. 2020).

    Attributes:
        buckets: ranges of distances; half are single distances, the others grow geometrically.
        distance: from here on all distances are one range.
    """

    buckets: int = 32
    distance: int = 128

    def __post_init__(self):
        if self.buckets < 4 or self.buckets % 2 or self.distance <= self.buckets // 2:
            raise ValueError(
                f"relative bias: {self.buckets} buckets up to distance {self.distance}; want an even number of at "
                "least 4, and a distance larger than half of it"
            )

    def bucket(self, length: int, *, causal: bool) -> Int[np.ndarray, "queries keys"]:
        """Number of the range that each pair of places falls in; where both directions are seen, half for each."""
        return self.ranges(np.arange(length)[None, :] - np.arange(length)[:, None], causal=causal)

    def ranges(self, ahead: Int[np.ndarray, "*shape"], *, causal: bool) -> Int[np.ndarray, "*shape"]:
        """Number of the range of each distance, which is how far the key is ahead of the query."""
        count = self.buckets if causal else self.buckets // 2
        away, exact = (np.maximum(-ahead, 0) if causal else np.abs(ahead)), count // 2
        # In float32, as trained models had it: at exact powers rounding decides.
        ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            np.log(self.distance / exact)
        )
        far = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int32), count - 1)
        near = np.where(away < exact, away, far)
        return near if causal else near + count * (ahead > 0)


class RelativeScores(nnx.Module):
    """The module of a `RelativeBias`, for one stack."""

    def __init__(self, config: RelativeBias, kv_heads: int, groups: int, *, std: float, execution: Execution):
        self.config, self.execution = config, execution
        axes = (None, "kv_heads", "groups")
        self.table = parameter((config.buckets, kv_heads, groups), axes, role=Role.POSITION, std=std)

    def __call__(self, length: int, *, causal: bool) -> Float[Array, "kv_heads groups length length"]:
        """What is added to the scores of every row."""
        return self._scores(jnp.asarray(self.config.bucket(length, causal=causal)), "length")

    def back(self, distances: Int[Array, " keys"], *, bound: int) -> Float[Array, "kv_heads groups 1 keys"]:
        """What is added to the scores of one causal query with keys so far back, less than `bound`."""
        buckets = jnp.asarray(self.config.ranges(-np.arange(bound), causal=True))
        return self._scores(buckets[jnp.clip(distances, 0, bound - 1)][None], None)

    def _scores(self, buckets: Int[Array, "queries keys"], axis: str | None):
        run = self.execution
        spec = run.rules.spec(axis, None, "kv_heads", "groups")
        table = reshard(self.table[...].astype(run.dtype), run.rules.spec(None, None, None))
        return jnp.transpose(table.at[buckets].get(out_sharding=spec), (2, 3, 0, 1))
