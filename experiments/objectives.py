"""Objectives: rows of tokens to a sum of losses, and how many tokens it is over."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.transformer import Decoder


class Example(NamedTuple):
    """What the rows of a batch ask of a model; every array is `batch length`."""

    tokens: Int[Array, "batch length"]
    targets: Int[Array, "batch length"]
    weights: Float[Array, "batch length"]
    segments: Int[Array, "batch length"]
    positions: Int[Array, "batch length"]


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Next-token prediction on rows of packed documents.

    A document begins with the token `bos`. Attention does not cross into another document, positions begin anew with
    each, and the first token of a document is not predicted from the one before it: packed documents train exactly as
    separate ones.

    Attributes:
        bos: the token that begins a document.
    """

    bos: int = 1

    def example(self, rows: Int[Array, "batch length+1"]) -> Example:
        """Inputs, targets, and where documents begin."""
        tokens, targets = rows[:, :-1], rows[:, 1:]
        starts = tokens == self.bos
        places = jnp.arange(tokens.shape[1])[None]
        return Example(
            tokens=tokens,
            targets=targets,
            weights=(targets != self.bos).astype(jnp.float32),
            segments=jnp.cumsum(starts, axis=1),
            positions=places - jax.lax.cummax(jnp.where(starts, places, 0), axis=1),
        )

    def losses(
        self, model: Decoder, rows: Int[Array, "batch length+1"], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Cross-entropy of each position in nats, zero where nothing is predicted; and the weights, 1 or 0."""
        example = self.example(rows)
        hidden = model(example.tokens, segments=example.segments, positions=example.positions, key=key)
        return cross_entropy(model, hidden, example.targets) * example.weights, example.weights


def cross_entropy(
    model: Decoder, hidden: Float[Array, "batch length embed"], targets: Int[Array, "batch length"]
) -> Float[Array, "batch length"]:
    """Cross-entropy in nats, with no more than `Execution.logits_chunk` positions' logits in memory at a time.

    Raises:
        ValueError: if the chunk does not divide the length.
    """
    length, chunk = targets.shape[1], model.execution.logits_chunk

    def losses(hidden, targets):
        logits = model.logits(hidden)
        # The target's logit by comparison, not by indexing: it works where the vocabulary is sharded.
        vocab = jax.lax.broadcasted_iota(targets.dtype, (1, 1, logits.shape[-1]), 2)
        chosen = jnp.where(vocab == targets[..., None], logits, 0.0).sum(axis=-1)
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
