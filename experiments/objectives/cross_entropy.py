"""Cross-entropy of predicted tokens, the two ways in which models are asked for it, and the objectives that are it."""

from abc import ABC, abstractmethod
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from experiments.objectives.example import Example, Losses, PairExample


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
        smoothing: share of the target's probability that is spread evenly over the whole vocabulary (Szegedy et al.
            2016).

    Raises:
        ValueError: if the chunk does not divide the length.
    """
    length, chunk = targets.shape[1], model.execution.logits_chunk

    def losses(hidden, targets):
        logits = model.logits(hidden)
        # The target's logit by comparison, not by indexing: it works where the vocabulary is sharded.
        vocab = jax.lax.broadcasted_iota(targets.dtype, (1, 1, logits.shape[-1]), 2)
        chosen = jnp.where(vocab == targets[..., None], logits, 0.0).sum(axis=-1)
        if smoothing:
            chosen = (1 - smoothing) * chosen + smoothing * logits.mean(axis=-1)
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    if chunk is None or chunk >= length:
        return losses(hidden, targets)
    if length % chunk:
        raise ValueError(f"logits_chunk {chunk} does not divide the row length {length}")
    # Checkpointed, so that the backward pass makes each chunk's logits again instead of keeping them.
    again = jax.checkpoint(losses)
    parts = [
        again(hidden[:, start : start + chunk], targets[:, start : start + chunk]) for start in range(0, length, chunk)
    ]
    return jnp.concatenate(parts, axis=1)


def token_losses(model: nnx.Module, example: Example, *, dropout: Key[Array, ""] | None) -> Losses:
    """Losses and weights of each position of an encoder or decoder."""
    # Only a model that is asked for it need know what a prefix is.
    prefix = {} if example.prefix is None else {"prefix": example.prefix}
    sides = dict(segments=example.segments, positions=example.positions, **prefix)
    hidden, penalty = _hidden(model, example.tokens, dropout=dropout, **sides)
    return (cross_entropy(model, hidden, example.targets) + penalty) * example.weights, example.weights


def pair_losses(
    model: nnx.Module, example: PairExample, *, dropout: Key[Array, ""] | None, smoothing: float = 0.0
) -> Losses:
    """Losses and weights of each target of an encoder-decoder."""
    segments = {"input_segments": example.input_segments, "target_segments": example.segments}
    hidden, penalty = _hidden(model, example.inputs, example.tokens, dropout=dropout, **segments)
    losses = cross_entropy(model, hidden, example.targets, smoothing=smoothing) + penalty
    return losses * example.weights, example.weights


def _hidden(model: nnx.Module, *rows: Array, dropout: Key[Array, ""] | None, **sides: Array):
    """What the model makes of rows, and what uneven use of its experts adds to each loss in training."""
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
