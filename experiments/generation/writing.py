"""Going on from prompts, token by token."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import reshard
from jaxtyping import Array, Int, Key

from experiments.generation.prompts import Prompts
from experiments.generation.sampling import GREEDY, Sampling
from experiments.objectives import row_keys
from models.cache import CachedDecoder
from models.transformer import Model


class Written(NamedTuple):
    """What a model wrote.

    Attributes:
        tokens: without the prompts; padding behind the end.
        lengths: how many of them there are, the end of text included.
    """

    tokens: Int[Array, "batch new"]
    lengths: Int[Array, " batch"]


@partial(jax.jit, static_argnames=("new", "sampling", "end", "pad"))
def write(
    model: Model,
    prompts: Prompts,
    key: Key[Array, ""] | None = None,
    *,
    new: int,
    sampling: Sampling = GREEDY,
    end: int | None = None,
    pad: int = 0,
) -> Written:
    """Goes on from prompts until every row has ended.

    A row's text depends on the key and on its number in the batch, not on the other rows nor on the mesh (beyond
    rounding).

    Args:
        model: a decoder, or an encoder and a decoder.
        prompts: what it goes on from.
        key: randomness; not needed to take the likeliest tokens.
        new: most tokens to write.
        sampling: how each is chosen.
        end: the token that ends a text; None for none.
        pad: what fills up behind it.

    Raises:
        ValueError: if `new` is not positive, there is no key to draw with, or the model cannot do it.
    """
    if new < 1:
        raise ValueError(f"{new} new tokens are none to write; want 1 or more")
    if key is None and sampling.temperature > 0:
        raise ValueError("a temperature above 0 draws tokens and needs a key")
    decoder, rules = CachedDecoder(model), model.execution.rules
    batch, length = prompts.tokens.shape
    stop = -1 if end is None else end
    rows = rules.spec("batch")
    keys = reshard(row_keys(jax.random.key(0) if key is None else key, jnp.arange(batch)), rows)

    def chosen(hidden, number):
        """One token for each row, from what was last read of it."""
        logits = reshard(model.logits(hidden[:, -1:])[:, 0], rules.spec("batch", None))
        one = jax.vmap(lambda logits, key: sampling(logits, jax.random.fold_in(key, number)))
        return jax.shard_map(one, in_specs=(rules.spec("batch", None), rows), out_specs=rows)(logits, keys)

    def going(state):
        number, _, _, ended, _ = state
        return (number < new) & ~ended.all()

    def step(state):
        number, cache, last, ended, tokens = state
        hidden, cache = decoder.extend(cache, last[:, None])
        last = jnp.where(ended, pad, chosen(hidden, number))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, last[:, None], number, axis=1)
        return number + 1, cache, last, ended | (last == stop), tokens

    settings = dict(capacity=length + new - 1, inputs=prompts.inputs, input_segments=prompts.input_segments)
    hidden, cache = decoder.prefill(prompts.tokens, first=prompts.first, **settings)
    last = chosen(hidden, 0)
    tokens = jnp.where(jnp.arange(new)[None, :] == 0, last[:, None], pad)
    state = (jnp.asarray(1, jnp.int32), cache, last, last == stop, tokens)
    *_, ended, tokens = jax.lax.while_loop(going, step, state)
    return Written(tokens, jnp.where(ended, jnp.argmax(tokens == stop, axis=1) + 1, new))
