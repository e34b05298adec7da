"""What an architecture costs: parameters and FLOPs under every convention in use.

Counts are analytic, because XLA's own count sees the body of a loop once. A multiply-add is two FLOPs; element-wise
work is left out, as everywhere in the literature; the backward pass is twice the forward one.

An encoder-decoder's tokens are those of both sides, inputs and targets, and its FLOPs are exact for them. Each token
meets only the parameters of its side, so that 6 x params x tokens overstates them by nearly two.

The conventions differ by more than taste: with small models the embedding and the head dominate, and Kaplan's optimum
exponent of 0.73 against Hoffmann's 0.50 is mostly this choice (Porian et al. 2024).
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.config import Architecture


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters, and forward FLOPs per token, of a part of a model. Costs add, and multiply by a number of repeats.

    Attributes:
        embedding: parameters of token and position embeddings and of an untied head.
        weights: all other parameters.
        idle: of `weights`, those that a given token does not use (experts it is not sent to).
        matmul_flops: forward FLOPs per token of products with weights, the head's included.
        attention_flops: forward FLOPs per token of products of activations with each other.
    """

    embedding: int = 0
    weights: int = 0
    idle: int = 0
    matmul_flops: float = 0.0
    attention_flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Cost)})

    def __mul__(self, repeats: int) -> "Cost":
        return Cost(**{field.name: getattr(self, field.name) * repeats for field in fields(Cost)})

    def times(self, share: float) -> "Cost":
        """The same parameters, used for `share` as many tokens."""
        flops = dict(matmul_flops=self.matmul_flops * share, attention_flops=self.attention_flops * share)
        return replace(self, **flops)

    @property
    def params(self) -> int:
        """All parameters (Hoffmann et al. 2022)."""
        return self.embedding + self.weights

    @property
    def params_nonembedding(self) -> int:
        """Parameters without token and position embeddings and head (Kaplan et al. 2020)."""
        return self.weights

    @property
    def params_active(self) -> int:
        """Parameters used per token."""
        return self.params - self.idle

    @property
    def flops_per_token(self) -> float:
        """Exact training FLOPs per token: three times the forward products, attention over visible pairs only."""
        return 3 * (self.matmul_flops + self.attention_flops)

    def flops(self, tokens: float) -> float:
        """Exact training FLOPs of `tokens` tokens."""
        return self.flops_per_token * tokens

    def flops_6nd(self, tokens: float) -> float:
        """6 x params x tokens."""
        return 6.0 * self.params_active * tokens

    def flops_kaplan(self, tokens: float) -> float:
        """6 x params_nonembedding x tokens (Kaplan et al. 2020, section 2.1)."""
        return 6.0 * (self.params_nonembedding - self.idle) * tokens


def visible_pairs(length: int, *, window: int | None = None, causal: bool = True) -> float:
    """Keys that a query sees, averaged over the positions of a row of `length` tokens that is one document.

    Itself and the `window - 1` before it, and as many after it where attention is not causal; None for all.
    """
    reach = min(window or length, length)
    pairs = reach * (reach + 1) / 2 + (length - reach) * reach
    return (pairs if causal else 2 * pairs - length) / length


def cost(architecture: "Architecture", length: int | None = None) -> Cost:
    """The cost of an architecture on rows of `length` tokens on either side (its own length when not given)."""
    return architecture.cost(length or architecture.length)
