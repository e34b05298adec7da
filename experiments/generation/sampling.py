"""One token from a distribution: the likeliest, or drawn from all or the likeliest few."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen.

    Logits are divided by the temperature; then only the `top_k` likeliest tokens are kept (Fan et al. 2018); then, of
    these, the fewest whose probability reaches `top_p` (Holtzman et al. 2020). Of equally likely ones the first.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: how many tokens are kept; None for all.
        top_p: probability that is kept; None for all.

    Raises:
        ValueError: for a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"sampling: temperature {self.temperature:g} must be 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"sampling: top_k {self.top_k} must keep 1 token or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: top_p {self.top_p:g} must be a probability above 0")

    def restricted(self, logits: Float[Array, " vocab"]) -> Float[Array, " vocab"]:
        """Logits after the temperature, -inf for tokens that are not kept."""
        logits = logits / self.temperature
        if self.top_k is None and self.top_p is None:
            return logits
        order = jnp.argsort(-logits, stable=True)
        ranked = logits[order]
        if self.top_k is not None:
            ranked = jnp.where(jnp.arange(len(ranked)) < self.top_k, ranked, -jnp.inf)
        if self.top_p is not None:
            probabilities = jax.nn.softmax(ranked)
            before = jnp.cumsum(probabilities) - probabilities  # exactly 0 for the first, which is always kept
            ranked = jnp.where(before < self.top_p, ranked, -jnp.inf)
        return jnp.zeros_like(logits).at[order].set(ranked)

    def __call__(self, logits: Float[Array, " vocab"], key: Key[Array, ""]) -> Int[Array, ""]:
        """The chosen token."""
        if self.temperature == 0:
            return jnp.argmax(logits).astype(jnp.int32)
        return jax.random.categorical(key, self.restricted(logits)).astype(jnp.int32)


GREEDY = Sampling(temperature=0.0)
"""The likeliest token."""
