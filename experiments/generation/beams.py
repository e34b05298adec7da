"""Beam search: the likeliest texts, several kept at each length."""

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import reshard
from jaxtyping import Array, Float, Int

from experiments.generation.prompts import Prompts
from models.cache import CachedDecoder
from models.transformer import Model

NEVER = -1e30  # the score of a text that is not there


class LengthPenalty(Enum):
    """What the log-likelihood of a text of `n` tokens is divided by, with the exponent `alpha`.

    `gnmt`: ((5 + n) / 6)^alpha (Wu et al. 2016, equation 14; Vaswani et al. 2017 use alpha 0.6). `power`: n^alpha, the
    mean over tokens for alpha 1 (Koehn and Knowles 2017, section 3.7).
    """

    GNMT = "gnmt"
    POWER = "power"

    def __call__(self, length: Int[Array, "*shape"] | int, alpha: float) -> Float[Array, "*shape"]:
        """The divisor."""
        length = jnp.asarray(length, jnp.float32)
        return ((5 + length) / 6 if self is LengthPenalty.GNMT else length) ** alpha


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How to search.

    Attributes:
        beams: texts kept at each length, and most texts returned.
        penalty: what lengthens texts: without it short ones win, which have fewer factors below 1.
        alpha: how much; 0 for none.

    Raises:
        ValueError: for a value out of range.
    """

    beams: int = 4
    penalty: LengthPenalty = LengthPenalty.GNMT
    alpha: float = 0.6

    def __post_init__(self):
        if self.beams < 1:
            raise ValueError(f"beam search: {self.beams} beams are none to search with")
        if self.alpha < 0:
            raise ValueError(f"beam search: alpha {self.alpha:g} must be 0 (no length penalty) or more")

    def score(self, likelihood: Float[Array, "*shape"], length: Int[Array, "*shape"] | int) -> Float[Array, "*shape"]:
        """The score of texts, from their log-likelihood and length, the end counted."""
        return likelihood / self.penalty(length, self.alpha)


class Beams(NamedTuple):
    """What was found for each row, best first.

    Attributes:
        tokens: without the prompts; padding behind the end.
        lengths: how many of them there are, the end of text included; 0 for a text that is not there.
        scores: log-likelihood in nats divided by the length penalty.
    """

    tokens: Int[Array, "batch beams new"]
    lengths: Int[Array, "batch beams"]
    scores: Float[Array, "batch beams"]


class _Search(NamedTuple):
    """A search under way: texts that may go on, and the best that have ended."""

    tokens: Int[Array, "batch beams new"]
    likelihood: Float[Array, "batch beams"]
    ended: Beams


@partial(jax.jit, static_argnames=("new", "end", "how", "pad"))
def search(model: Model, prompts: Prompts, *, new: int, end: int, how: BeamSearch | None = None, pad: int = 0) -> Beams:
    """The best texts that end, or have `new` tokens.

    At each length the likeliest texts that have not ended go on. A row is done when none of them could still beat the
    worst that is kept of those that have.

    Args:
        model: a decoder, or an encoder and a decoder.
        prompts: what it goes on from.
        new: most tokens of a text.
        end: the token that ends a text.
        how: how many texts are kept, and the length penalty; None for the defaults.
        pad: what fills up behind the end.

    Raises:
        ValueError: if `new` is not positive, or the model cannot do it.
    """
    if new < 1:
        raise ValueError(f"{new} new tokens are none to write; want 1 or more")
    how, decoder, rules = how or BeamSearch(), CachedDecoder(model), model.execution.rules
    length = prompts.tokens.shape[1]

    def scores(hidden):
        logits = reshard(model.logits(hidden[:, -1:])[:, 0], rules.spec("batch", None))
        return jax.nn.log_softmax(logits)

    def local(function, count, *trees):
        """`function` on each device's own rows."""
        rows = rules.spec("batch")
        return jax.shard_map(function, in_specs=(jax.P(), *(rows,) * len(trees)), out_specs=rows)(count, *trees)

    def grown(count, found: _Search, likelihood):
        """One token further: what goes on, from which row, with which token."""
        texts, vocab = found.likelihood.shape[0], likelihood.shape[-1]
        total = found.likelihood[:, :, None] + likelihood.reshape(texts, how.beams, vocab)
        # Twice as many as beams: no more than one candidate of each beam ends, so enough go on.
        best, index = jax.lax.top_k(total.reshape(texts, -1), 2 * how.beams)
        parent, token = index // vocab, (index % vocab).astype(jnp.int32)
        tokens = jnp.take_along_axis(found.tokens, parent[:, :, None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, :, None], count, axis=2)
        ends = token == end
        ended = _best(how, found.ended, tokens, jnp.where(ends, best, NEVER), count + 1)
        going, order = jax.lax.top_k(jnp.where(ends, NEVER, best), how.beams)
        pick = partial(jnp.take_along_axis, indices=order, axis=1)
        tokens = jnp.take_along_axis(tokens, order[:, :, None], axis=1)
        parents = (jnp.arange(texts)[:, None] * how.beams + pick(parent)).reshape(-1)
        return _Search(tokens, going, ended), parents.astype(jnp.int32), pick(token).reshape(-1)

    def going(state):
        count, found, *_ = state
        # The largest divisor there can be: likelihoods only fall.
        hope = how.score(found.likelihood.max(axis=1), new)
        return (count < new) & (hope > found.ended.scores.min(axis=1)).any()

    def step(state):
        count, found, cache, parents, last = state
        hidden, cache = decoder.extend(cache.reordered(parents), last[:, None])
        found, parents, last = local(grown, count, found, scores(hidden))
        return count + 1, found, cache, parents, last

    settings = dict(capacity=length + new - 1, inputs=prompts.inputs, input_segments=prompts.input_segments)
    hidden, cache = decoder.prefill(prompts.tokens, first=prompts.first, **settings)

    def begun(_, likelihood):
        """The search before its first token, with one beam to go on from; and what the model says for each beam."""
        texts = likelihood.shape[0]
        tokens = jnp.full((texts, how.beams, new), pad, jnp.int32)
        alone = jnp.where(jnp.arange(how.beams) == 0, 0.0, NEVER)[None, :] + jnp.zeros((texts, 1))
        nothing = Beams(tokens, jnp.zeros((texts, how.beams), jnp.int32), jnp.full((texts, how.beams), NEVER))
        return _Search(tokens, alone, nothing), jnp.repeat(likelihood, how.beams, axis=0)

    zero = jnp.zeros((), jnp.int32)
    found, likelihood = local(begun, zero, scores(hidden))
    found, parents, last = local(grown, zero, found, likelihood)
    state = (zero + 1, found, cache.repeated(how.beams), parents, last)
    count, found, *_ = jax.lax.while_loop(going, step, state)
    # At the limit, texts that have not ended count as they are.
    return local(lambda count, found: _best(how, found.ended, found.tokens, found.likelihood, count), count, found)


def _best(how: BeamSearch, kept: Beams, tokens: Array, likelihood: Array, length: Array) -> Beams:
    """The best of the texts kept and further ones of this length."""
    there = likelihood > NEVER / 2
    scores = jnp.where(there, how.score(likelihood, length), NEVER)
    further = Beams(tokens, jnp.where(there, length, 0).astype(jnp.int32), scores)
    both = Beams(*(jnp.concatenate(pair, axis=1) for pair in zip(kept, further, strict=True)))
    scores, order = jax.lax.top_k(both.scores, how.beams)
    lengths = jnp.take_along_axis(both.lengths, order, axis=1)
    return Beams(jnp.take_along_axis(both.tokens, order[:, :, None], axis=1), lengths, scores)
