"""Cross-entropy of predicted tokens, the ways in which models are asked for it, and the objectives that are it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard
from jaxtyping import Array, Float, Int, Key

from experiments.objectives.example import Example, Losses, PairExample, taken
from parallel.sharding import Rules


def cross_entropy(
    model: nnx.Module,
    hidden: Float[Array, "batch length embed"],
    targets: Int[Array, "batch length"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, "batch length"]:
    """Cross-entropy in nats, with no more than `Execution.logits_chunk` positions' logits in memory at a time.

    Args:
        model: has `logits` and `execution`.
        hidden: what the model made of the tokens.
        targets: the right answers.
        smoothing: as of `surprise`.

    Raises:
        ValueError: as of `by_chunk`.
    """
    return by_chunk(model, hidden, lambda logits, targets: surprise(logits, targets, smoothing=smoothing), targets)


def surprise(
    logits: Float[Array, "batch length choices"], targets: Int[Array, "batch length"], *, smoothing: float = 0.0
) -> Float[Array, "batch length"]:
    """Cross-entropy of the targets in nats.

    Args:
        logits: of each choice.
        targets: numbers of the right ones.
        smoothing: share of the target's probability that is spread evenly over all choices (Szegedy et al. 2016).
    """
    # The target's logit by comparison, not by indexing: it works where the choices are sharded.
    choices = jax.lax.broadcasted_iota(targets.dtype, (1, 1, logits.shape[-1]), 2)
    chosen = jnp.where(choices == targets[..., None], logits, 0.0).sum(axis=-1)
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * logits.mean(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def by_chunk(
    model: nnx.Module,
    hidden: Float[Array, "batch length embed"],
    ask: Callable[..., Any],
    *told: Array,
) -> Any:
    """`ask(logits, *told)`, with no more than `Execution.logits_chunk` positions' logits in memory at a time.

    Args:
        model: has `logits` and `execution`.
        hidden: what the model made of the tokens.
        ask: makes arrays of `batch length` of the logits at some positions.
        *told: arrays of `batch length`, of which `ask` is given the same positions.

    Raises:
        ValueError: if devices split the length and the chunk does not divide it, or they cannot share a chunk equally.
    """
    length, run, spec = hidden.shape[1], model.execution, jax.typeof(hidden).sharding.spec
    chunk = run.logits_chunk

    def answers(hidden, *told):
        return ask(model.logits(hidden), *told)

    if chunk is None or chunk >= length:
        return answers(hidden, *told)
    # Checkpointed, so that the backward pass makes each chunk's logits again instead of keeping them.
    again = jax.checkpoint(answers)
    if len(spec) < 2 or spec[1] is None:
        starts = range(0, length, chunk)
        parts = [again(*(array[:, start : start + chunk] for array in (hidden, *told))) for start in starts]
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)
    if length % chunk:
        raise ValueError(f"logits_chunk {chunk} does not divide the row length {length}")
    cut = [_cut(array, chunk, run.rules) for array in (hidden, *told)]
    return jax.tree.map(lambda *arrays: _joined(arrays, run.rules), *(again(*part) for part in zip(*cut, strict=True)))


def _cut(array: Array, chunk: int, rules: Rules) -> list[Array]:
    """Parts of `chunk` positions of a length that is split over devices: the same ones of the stretch of each device.

    Raises:
        ValueError: if the parts cannot be shared equally by the devices.
    """
    batch, length, *rest = array.shape
    stretches = rules.shards("length", jax.sharding.get_abstract_mesh())
    if chunk % stretches:
        raise ValueError(f"logits_chunk {chunk} cannot be shared equally by the {stretches} devices that split a row")
    whole = (None,) * len(rest)
    array = reshard(array, rules.spec("batch", "length", *whole))
    stretched = rules.spec("batch", "length", None, *whole)
    array = array.reshape((batch, stretches, length // stretches, *rest), out_sharding=stretched)
    parts = jnp.split(array, length // chunk, axis=2)
    return [part.reshape((batch, chunk, *rest), out_sharding=rules.spec("batch", "length", *whole)) for part in parts]


def _joined(parts: Sequence[Float[Array, "batch chunk"]], rules: Rules) -> Float[Array, "batch length"]:
    """What `_cut` took apart."""
    batch, chunk = parts[0].shape
    stretches, stretched = rules.shards("length", jax.sharding.get_abstract_mesh()), rules.spec("batch", "length", None)
    parts = [part.reshape((batch, stretches, chunk // stretches), out_sharding=stretched) for part in parts]
    whole = jnp.concatenate(parts, axis=2)
    return whole.reshape((batch, chunk * len(parts)), out_sharding=rules.spec("batch", "length"))


def token_losses(model: nnx.Module, example: Example, *, dropout: Key[Array, ""] | None) -> Losses:
    """Losses and weights of each position of an encoder or decoder that needs logits."""
    # Only a model that is asked for it need know what a prefix is.
    prefix = {} if example.prefix is None else {"prefix": example.prefix}
    sides = dict(segments=example.segments, positions=example.positions, **prefix)
    hidden, penalty = asked(model, example.tokens, dropout=dropout, **sides)
    hidden, targets, weights = about(example, model.execution.rules, hidden, example.targets, example.weights)
    return (cross_entropy(model, hidden, targets) + penalty) * weights, weights


def about(example: Example, rules: Rules, *arrays: Array) -> list[Array]:
    """Of arrays of `batch length` what is at the places that need logits.

    That is everything where devices split the length of rows: each has logits of its own stretch.
    """
    every = example.places is None or rules.length
    return [array if every else taken(array, example.places, rules) for array in arrays]


def pair_losses(
    model: nnx.Module, example: PairExample, *, dropout: Key[Array, ""] | None, smoothing: float = 0.0
) -> Losses:
    """Losses and weights of each target of an encoder-decoder."""
    segments = {"input_segments": example.input_segments, "target_segments": example.segments}
    hidden, penalty = asked(model, example.inputs, example.tokens, dropout=dropout, **segments)
    losses = cross_entropy(model, hidden, example.targets, smoothing=smoothing) + penalty
    return losses * example.weights, example.weights


def asked(model: nnx.Module, *rows: Array, dropout: Key[Array, ""] | None, **sides: Array) -> tuple[Any, Any]:
    """What a model makes of rows, and what uneven use of its experts adds to each loss in training."""
    if dropout is None or not getattr(model, "routed", False):
        return model(*rows, key=dropout, **sides), 0.0
    return model.with_penalty(*rows, key=dropout, **sides)


class TokenObjective(ABC):
    """An objective whose losses are the cross-entropies of the tokens that its example asks for."""

    likelihood: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False

    @abstractmethod
    def example(
        self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"] | None = None
    ) -> Example | PairExample:
        """What a model reads, and what it is to say; keys may be left out where nothing is random."""

    def losses(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"] | None = None,
        *,
        dropout: Key[Array, ""] | None,
    ) -> Losses:
        """Cross-entropy of each target in nats, zero where nothing is predicted; and the weights, 1 or 0."""
        example = self.example(rows, keys)
        losses = pair_losses if isinstance(example, PairExample) else token_losses
        return losses(model, example, dropout=dropout)
