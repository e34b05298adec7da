"""Telling which tokens a smaller model put in place of those that were there."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, Float, Int, Key

from experiments.objectives.cross_entropy import about, asked, by_chunk, surprise
from experiments.objectives.example import Example, Graded, Losses, Sides, by_row
from experiments.objectives.masked import Masked

DRAWS = 3  # what is folded into a row's key for the generator's draws; masks are drawn from the keys 0 to 2


@dataclass(frozen=True, kw_only=True)
class ReplacedTokens:
    """Replaced-token detection (Clark et al. 2020): a generator and a discriminator, trained together.

    The generator predicts hidden tokens. What it says in their place is drawn from its probabilities, and the
    discriminator tells of every token of the row whether it is another than was there; a token drawn right counts as
    not replaced. Nothing flows back through the draw. The loss of a row in training is the mean cross-entropy of its
    hidden tokens, plus `weight` times the mean cross-entropy of telling its tokens.

    The held-out loss, the one in the table of runs, is that of the discriminator alone: nats per token of telling
    whether it was replaced, of which a coin that knows the share of replaced tokens needs at most 0.42 at a share of
    0.15. Accuracy is the share of tokens told rightly. Neither says how likely a text is, and a better generator asks
    harder questions: compare models whose generators are alike.

    Attributes:
        masking: which tokens are hidden, and what the generator reads there.
        weight: of the discriminator's part in training.

    Raises:
        ValueError: for a weight that is not positive.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.DETECTION,)
    likelihood: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False

    masking: Masked
    weight: float = 50.0

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"replaced tokens: weight {self.weight:g} of telling them must be positive")

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        weighted = "" if self.weight == 50.0 else f"-x{self.weight:g}"
        return f"replaced-tokens-{self.masking.label}{weighted}"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.masking.vocab

    def lengths(self, length: int) -> tuple[int, ...]:
        """Every token but the last is read, by both models."""
        return self.masking.lengths(length)

    def most(self, length: int) -> int:
        """How many of `length` tokens the generator may say something in place of."""
        return self.masking.most(length)

    def losses(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"],
        *,
        dropout: Key[Array, ""] | None,
    ) -> Losses:
        """In training one loss a row, in evaluation the discriminator's of each token; weights are 1."""
        if dropout is None:
            return self.graded(model, rows, keys, dropout=None)[:2]
        example = self.masking.example(rows, keys)
        first, second = jax.random.split(dropout)
        hidden, tokens, penalty = self.generated(model.generator, example, keys, dropout=first)
        told, _, further = self.told(model.discriminator, example, tokens, dropout=second)
        hidden = hidden.sum(axis=1) / jnp.maximum(example.weights.sum(axis=1), 1.0)
        losses = hidden + self.weight * told.mean(axis=1) + penalty + further
        return losses[:, None], jnp.ones_like(losses)[:, None]

    def graded(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"],
        *,
        dropout: Key[Array, ""] | None,
    ) -> Graded:
        """The discriminator's losses, weights of 1, and which tokens it told rightly, all being asked."""
        example = self.masking.example(rows, keys)
        _, tokens, _ = self.generated(model.generator, example, keys, dropout=dropout)
        losses, right, _ = self.told(model.discriminator, example, tokens, dropout=dropout)
        return losses, jnp.ones_like(losses), right, jnp.ones_like(losses)

    def generated(
        self, generator: nnx.Module, example: Example, keys: Key[Array, " batch"], *, dropout: Key[Array, ""] | None
    ) -> tuple[Float[Array, "batch length"], Int[Array, "batch length"], Float[Array, ""] | float]:
        """Cross-entropies of hidden tokens, rows with the generator's draws in their place, its experts' penalty."""
        sides = dict(segments=example.segments, positions=example.positions)
        hidden, penalty = asked(generator, example.tokens, dropout=dropout, **sides)
        # A number for each position, so that neither meshes nor chunks of logits change what is drawn.
        numbers = by_row(
            lambda row, key: jax.random.uniform(jax.random.fold_in(key, DRAWS), row.shape), example.tokens, keys
        )
        ask = lambda logits, targets, numbers: (surprise(logits, targets), draw(logits, numbers))  # noqa: E731
        arrays = hidden, example.targets, example.weights, numbers
        hidden, targets, weights, numbers = about(example, generator.execution.rules, *arrays)
        losses, drawn = by_chunk(generator, hidden, ask, targets, numbers)
        tokens = jnp.where(weights > 0, drawn, targets)
        if tokens.shape != example.tokens.shape:  # they are of few places
            told = example.places, tokens
            tokens = by_row(lambda row, told: row.at[told[0]].set(told[1], unique_indices=True), example.targets, told)
        return losses * weights, tokens, penalty

    def told(
        self, discriminator: nnx.Module, example: Example, tokens: Int[Array, "batch length"], *,
        dropout: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"], Float[Array, ""] | float]:  # fmt: skip
        """The discriminator's cross-entropies, 1 where it tells rightly, and its experts' penalty."""
        sides = dict(segments=example.segments, positions=example.positions)
        hidden, penalty = asked(discriminator, tokens, dropout=dropout, **sides)
        logits, replaced = discriminator.classes(hidden)[..., 0], tokens != example.targets
        losses = jax.nn.softplus(logits) - jnp.where(replaced, logits, 0.0)
        return losses, ((logits > 0) == replaced).astype(jnp.float32), penalty


def draw(
    logits: Float[Array, "batch length vocab"], numbers: Float[Array, "batch length"]
) -> Int[Array, "batch length"]:
    """A token at each position by the probabilities of `logits`, by inversion of even numbers in [0, 1).

    No gradient flows through it.
    """
    sharding = jax.typeof(logits).sharding
    if not sharding.mesh.empty:  # sums over tokens run over all of them
        logits = reshard(logits, PartitionSpec(*sharding.spec[:2], None))
    sums = jnp.cumsum(jax.nn.softmax(jax.lax.stop_gradient(logits)), axis=-1)
    return (sums <= numbers[..., None] * sums[..., -1:]).sum(axis=-1)
