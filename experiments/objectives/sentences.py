"""Telling how two stretches of text stand to each other, beside predicting tokens hidden in them."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from experiments.objectives.classification import class_losses
from experiments.objectives.cross_entropy import about, asked, cross_entropy
from experiments.objectives.example import Graded, Losses, Sides, by_row
from experiments.objectives.masked import Masked

COIN = 3  # what is folded into a row's key to toss for its pair; masks are drawn from the keys 0 to 2


class Relation(Enum):
    """What is asked of two stretches: whether one follows the other (BERT), or which comes first (ALBERT)."""

    NEXT = "next-sentence"
    ORDER = "sentence-order"

    @property
    def pieces(self) -> int:
        """How many stretches a row is cut into."""
        return 3 if self is Relation.NEXT else 2


class SentenceExample(NamedTuple):
    """What the rows of a batch ask of an encoder.

    Attributes:
        tokens: what the model reads: `bos`, the first stretch, `eos`, the second, `eos`.
        targets: what was there.
        weights: 1 where tokens are to be predicted, else 0.
        places: numbers of the positions that need logits; None for all.
        types: 0 up to the first `eos`, 1 behind it.
        relation: 0 if the stretches stand as in the text, else 1.
    """

    tokens: Int[Array, "batch length"]
    targets: Int[Array, "batch length"]
    weights: Float[Array, "batch length"]
    places: Int[Array, "batch asked"] | None
    types: Int[Array, "batch length"]
    relation: Int[Array, "batch 1"]


@dataclass(frozen=True, kw_only=True)
class SentencePairs:
    """Masked language modelling on pairs of stretches of text, and a question about each pair.

    A row is cut into stretches of equal length. For sentence order (Lan et al. 2020) there are two, and half of the
    pairs are turned round. For next sentence (Devlin et al. 2019) there are three, and the first stretch is followed by
    the second or, in half of the pairs, by the third. BERT takes that one from anywhere in the corpus; here an example
    depends on its row alone, so that it is from another document where documents are shorter than a stretch, and else
    from further on. What is read is one document to the model: whatever a stretch holds is seen from the other. Where
    the embedding has kinds of tokens, the second kind is that of the second stretch.

    The loss of a row in training is the mean cross-entropy of its hidden tokens, plus that of the question. The
    held-out loss, the one in the table of runs, is that of the hidden tokens alone, nats for each; accuracy is that of
    the question.

    Attributes:
        masking: which tokens are hidden, and what is read there.
        relation: what is asked of a pair.
    """

    sides: ClassVar[tuple[Sides, ...]] = (Sides.ENCODER,)
    likelihood: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False

    masking: Masked
    relation: Relation

    @property
    def label(self) -> str:
        """The column `objective` of the table of runs."""
        return f"{self.masking.label}-and-{self.relation.value}"

    @property
    def vocab(self) -> int:
        """The smallest vocabulary of a model that can be asked."""
        return self.masking.vocab

    def stretch(self, length: int) -> int:
        """Tokens of each stretch of rows of `length + 1`.

        Raises:
            ValueError: if there are none.
        """
        # Both stretches and three separators are no longer than what a masked model reads of the row.
        size = min((length + 1) // self.relation.pieces, (length - 3) // 2)
        if size < 1:
            raise ValueError(f"{self.relation.value}: rows of {length + 1} tokens hold no pair")
        return size

    def lengths(self, length: int) -> tuple[int, ...]:
        """Two stretches and what separates them."""
        return (2 * self.stretch(length) + 3,)

    def most(self, length: int) -> int:
        """How many of `length` tokens may be hidden."""
        return self.masking.most(length)

    def example(self, rows: Int[Array, "batch length+1"], keys: Key[Array, " batch"]) -> SentenceExample:
        """What the model reads, what was there, and how the stretches stand."""
        return by_row(self._row, rows, keys)

    def _row(self, row: Int[Array, " length+1"], key: Key[Array, ""]) -> SentenceExample:
        ids, size = self.masking.vocabulary, self.stretch(len(row) - 1)
        pieces = [row[number * size : (number + 1) * size] for number in range(self.relation.pieces)]
        other = (pieces[1], pieces[0]) if self.relation is Relation.ORDER else (pieces[0], pieces[2])
        bos, eos = (jnp.full((1,), number, row.dtype) for number in (ids.bos, ids.eos))
        as_it_was, as_not = (
            jnp.concatenate([bos, first, eos, second, eos]) for first, second in ((pieces[0], pieces[1]), other)
        )
        coin = jax.random.bernoulli(jax.random.fold_in(key, COIN))
        targets = jnp.where(coin, as_not, as_it_was)
        tokens, chosen = self.masking.hide(targets, key)
        return SentenceExample(
            tokens=tokens,
            targets=targets,
            weights=chosen.astype(jnp.float32),
            places=self.masking.places(chosen),
            types=(jnp.arange(len(targets)) > size + 1).astype(jnp.int32),
            relation=coin.astype(jnp.int32)[None],
        )

    def losses(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"],
        *,
        dropout: Key[Array, ""] | None,
    ) -> Losses:
        """In training one loss a row, in evaluation the cross-entropy of each hidden token; weights are 1 or 0.

        Raises:
            ValueError: if the model does not tell two classes of a row.
        """
        if dropout is None:
            return self.graded(model, rows, keys, dropout=None)[:2]
        example = self.example(rows, keys)
        hidden, weights, relation, _, penalty = self._told(model, example, dropout)
        losses = hidden.sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0) + relation[:, 0] + penalty
        return losses[:, None], jnp.ones_like(losses)[:, None]

    def graded(
        self,
        model: nnx.Module,
        rows: Int[Array, "batch length+1"],
        keys: Key[Array, " batch"],
        *,
        dropout: Key[Array, ""] | None,
    ) -> Graded:
        """Losses and weights of hidden tokens, and whether each pair was told rightly, all being asked."""
        hidden, weights, _, right, _ = self._told(model, self.example(rows, keys), dropout)
        return hidden, weights, right, jnp.ones_like(right)

    def _told(self, model: nnx.Module, example: SentenceExample, dropout: Key[Array, ""] | None):
        """Losses and weights of hidden tokens, loss of the question, whether told rightly, and the experts' penalty."""
        kinds = {"types": example.types} if model.config.embedding.types > 1 else {}
        last, penalty = asked(model, example.tokens, dropout=dropout, **kinds)
        rules = model.execution.rules
        each, targets, weights = about(example, rules, last, example.targets, example.weights)
        relation, right = class_losses(model.classes(last), example.relation, 2)
        return cross_entropy(model, each, targets) * weights, weights, relation, right, penalty
