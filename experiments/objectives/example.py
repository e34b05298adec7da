"""What an objective is: rows to examples, and examples with a model to losses.

An objective is a frozen dataclass, part of what a run is. Its data half, `example`, is pure `jax.numpy` with static
shapes: rows of integers as they lie on disk, and one key a row. The trainer derives a row's key from the run's seed,
the step and the row's place in the global batch, so that examples depend neither on the mesh nor on the number of
processes or parts a batch is computed in. Evaluation derives it from the row's number among the held-out rows alone:
every run is asked the same questions. Its model half, `losses`, asks a model and weighs the answers.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, Bool, Float, Int, Key

from models.detection import Detection
from models.towers import Towers
from models.transformer import AnyArchitecture
from parallel.sharding import Rules

Losses = tuple[Float[Array, "batch predictions"], Float[Array, "batch predictions"]]
"""Loss of each prediction, 0 where there is none; and the weights, 1 or 0."""

Graded = tuple[
    Float[Array, "batch predictions"],
    Float[Array, "batch predictions"],
    Float[Array, "batch answers"],
    Float[Array, "batch answers"],
]
"""Losses and weights; and 1 for an answer whose most probable form is right, else 0; and 1 for one that counts."""


class Sides(Enum):
    """Which stacks a model has."""

    ENCODER = "an encoder"
    DECODER = "a decoder"
    BOTH = "an encoder and a decoder"
    IMAGES = "an encoder of images"
    TOWERS = "two towers"
    DETECTION = "a generator and a discriminator"

    @classmethod
    def of(cls, architecture: AnyArchitecture) -> Self:
        """The stacks of an architecture."""
        if isinstance(architecture, Towers):
            return cls.TOWERS
        if isinstance(architecture, Detection):
            return cls.DETECTION
        if architecture.image:
            return cls.IMAGES
        if architecture.encoder and architecture.decoder:
            return cls.BOTH
        return cls.ENCODER if architecture.encoder else cls.DECODER


class Example(NamedTuple):
    """What the rows of a batch ask of a model of one stack; every array but `places` is `batch length`.

    Attributes:
        tokens: what the model reads.
        targets: what it is to say at each position.
        weights: 1 where that counts, else 0.
        segments: number of the document at each position; other documents are not seen.
        positions: place in the document.
        prefix: where a causal model is seen by earlier positions too; None for nowhere.
        places: numbers of the positions that need logits, those of weight 0 among them; None for all.
    """

    tokens: Int[Array, "batch length"]
    targets: Int[Array, "batch length"]
    weights: Float[Array, "batch length"]
    segments: Int[Array, "batch length"]
    positions: Int[Array, "batch length"]
    prefix: Bool[Array, "batch length"] | None = None
    places: Int[Array, "batch asked"] | None = None


class PairExample(NamedTuple):
    """What the rows of a batch ask of an encoder-decoder.

    Attributes:
        inputs: what the encoder reads.
        input_segments: 1 where that is real, 0 where it is padding.
        tokens: what the decoder reads: its targets one place late.
        targets: what it is to say at each position.
        weights: 1 where that counts, else 0.
        segments: 1 where the target is real, 0 where it is padding.
    """

    inputs: Int[Array, "batch input_length"]
    input_segments: Int[Array, "batch input_length"]
    tokens: Int[Array, "batch target_length"]
    targets: Int[Array, "batch target_length"]
    weights: Float[Array, "batch target_length"]
    segments: Int[Array, "batch target_length"]


class Objective(Protocol):
    """What the train loop and the table of runs ask of an objective.

    Attributes:
        sides: the kinds of model that can be asked.
        likelihood: whether the losses of a row sum to the negative log-likelihood of its text, so that there are bits
            per byte.
        couples_rows: whether a row's loss depends on the other rows of its batch, which then cannot be computed in
            parts.
    """

    sides: ClassVar[tuple[Sides, ...]]
    likelihood: ClassVar[bool]
    couples_rows: ClassVar[bool]

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs: losses under different labels cannot be compared."""

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""

    def lengths(self, length: int) -> tuple[int, ...]:
        """How much each stack is given to read, in tokens or pixels, for rows of `length + 1` integers.

        Raises:
            ValueError: if rows of that length cannot be made into examples.
        """

    def losses(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"],
        *,
        dropout: Key[Array, ""] | None,
    ) -> Losses:
        """Losses in nats and their weights.

        Args:
            model: what is asked.
            rows: as they lie on disk.
            keys: randomness of each row's example.
            dropout: randomness of the model in training; None in evaluation, where the loss is the bare one.
        """


@runtime_checkable
class Gradable(Protocol):
    """An objective that has answers which are right or wrong, so that there is an accuracy beside the loss."""

    def graded(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"],
        *,
        dropout: Key[Array, ""] | None,
    ) -> Graded:
        """Losses and weights as of `losses`, which answers are right, and which count."""


@runtime_checkable
class Sparing(Protocol):
    """An objective that asks about few tokens of a row, so that the others need no logits."""

    def most(self, length: int) -> int:
        """How many tokens it may ask about where a model reads `length`."""


def row_keys(key: Key[Array, ""], numbers: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key a row, from the rows' numbers."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def by_row(
    function: Callable[[Array, Any], Any],
    rows: Array,
    keys: Any,
) -> Any:
    """`function(row, key)` for each row of a batch, or whatever else there is one of for each row.

    Every device works on the rows that it holds.
    """
    rows, many = jnp.asarray(rows), jax.vmap(function)
    sharding = jax.typeof(rows).sharding
    if sharding.mesh.empty:
        return many(rows, keys)
    spec = PartitionSpec(sharding.spec[0])
    return jax.shard_map(many, in_specs=(spec, spec), out_specs=spec)(rows, reshard(keys, spec))


def taken(array: Array, places: Int[Array, "batch asked"], rules: Rules) -> Array:
    """Of each row what is at the places asked about.

    Args:
        array: `batch length` or `batch length size`.
        places: numbers of positions.
        rules: how rows are split; what is taken is not split but by rows.
    """
    if not jax.typeof(array).sharding.mesh.empty:
        array = reshard(array, rules.spec("batch", *(None for _ in array.shape[1:])))
    return by_row(lambda row, places: row.at[places].get(unique_indices=True), array, places)


def images(pixels: Int[Array, "batch pixels"], shape: tuple[int, ...]) -> Float[Array, "batch height width channels"]:
    """Images whose pixels of 0 to 255 lie in rows, as numbers from -1 to 1."""
    sharding = jax.typeof(jnp.asarray(pixels)).sharding
    layout = None if sharding.mesh.empty else PartitionSpec(sharding.spec[0], None, None, None)
    whole = jnp.asarray(pixels).reshape((len(pixels), *shape), out_sharding=layout)
    return whole.astype(jnp.float32) / 127.5 - 1.0


def documents(tokens: Int[Array, "*batch length"], bos: int) -> tuple[Int[Array, "*batch length"], ...]:
    """Number of the document at each position, counted from the first that begins in the row, and place in it."""
    starts = tokens == bos
    places = jnp.arange(tokens.shape[-1]).reshape((1,) * (tokens.ndim - 1) + (-1,))
    begun = jax.lax.cummax(jnp.where(starts, places, 0), axis=tokens.ndim - 1)
    return jnp.cumsum(starts, axis=-1), places - begun


def late(targets: Int[Array, "*batch length"], first: int) -> Int[Array, "*batch length"]:
    """What a decoder reads to predict the targets: the token `first`, then all targets but the last."""
    before = [(0, 0)] * (targets.ndim - 1) + [(1, 0)]
    return jnp.pad(targets[..., :-1], before, constant_values=first)
