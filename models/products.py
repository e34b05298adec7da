"""Products of activations and matrices, written as the platform computes them fastest."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from models.execution import Execution, Products


def product(
    equation: str,
    x: Array,
    weights: Array,
    axes: Sequence[str | None],
    over: Sequence[str | None],
    execution: Execution,
    **options: jnp.dtype,
) -> Array:
    """`einsum(equation, x, weights)` whose result has logical axes `axes`.

    With `Products.FLAT` it is one product of two matrices where none of the axes that are laid together is split, but
    for the first. Its gradients are then such products too, and XLA's CPU compiler computes them in place; of products
    over several axes it first makes transposed copies (a tenth of a step). The gradient of the matrix is computed with
    its short side first, which takes a third less time.

    Args:
        equation: two operands, as for `einsum`; what is summed lies together in `weights`, at its beginning or end.
        x: activations.
        weights: a matrix, as it is computed with.
        axes: logical axes of the result.
        over: logical axes of `weights`.
        execution: how to compute.
        **options: of `jax.numpy.einsum`.
    """
    reads, matrix, writes = equation.replace("->", ",").split(",")
    rules, named = execution.rules, dict(zip(matrix, over, strict=True)) | dict(zip(writes, axes, strict=True))
    rows, summed, kept = (
        "".join(letter for letter in letters if (letter in matrix) is inside and (letter in reads) is read)
        for letters, inside, read in ((reads, False, True), (matrix, True, True), (matrix, True, False))
    )
    split = any(rules.axes(named[letter]) for group in (rows, summed, kept) for letter in group[1:])
    if execution.products is Products.WHOLE or split or matrix not in (summed + kept, kept + summed):
        return jnp.einsum(equation, x, weights, out_sharding=rules.spec(*axes), **options)

    def layout(*groups: str) -> PartitionSpec:
        return rules.spec(*(named[group[0]] if group else None for group in groups))

    sizes = dict(zip(reads, x.shape, strict=True)) | dict(zip(matrix, weights.shape, strict=True))
    long = {group: math.prod(sizes[letter] for letter in group) for group in (rows, summed, kept)}
    first, last = (summed, kept) if matrix == summed + kept else (kept, summed)
    x = x.transpose([reads.index(letter) for letter in rows + summed])
    x = jax.lax.reshape(x, (long[rows], long[summed]), out_sharding=layout(rows, summed))
    weights = jax.lax.reshape(weights, (long[first], long[last]), out_sharding=layout(first, last))
    if long[first] > long[last]:  # the barrier: XLA would undo a transposition that nothing stands behind
        weights, first = jax.lax.optimization_barrier(weights.T), last
    flat = "rs,sk->rk" if first == summed else "rs,ks->rk"
    y = jnp.einsum(flat, x, weights, out_sharding=layout(rows, kept), **options)
    spec = rules.spec(*(named[letter] for letter in rows + kept))
    y = jax.lax.reshape(y, [sizes[letter] for letter in rows + kept], out_sharding=spec)
    return y.transpose([(rows + kept).index(letter) for letter in writes])


def written(x: Array, execution: Execution) -> Array:
    """`x`, whose gradient is finished before anything reads it.

    A product's gradient goes into two products, and a norm's into sums over rows and over columns. XLA's TPU compiler
    puts what makes it into each of those, the sums into a product's epilogue: a step of a 7B decoder takes 5 % less
    time on v5p and 8 % less on v5e with the gradient written out (its own cycles). Nothing for `Products.FLAT`, as the
    CPU's compiler drops barriers before it fuses.
    """
    return x if execution.products is Products.FLAT else _written(x)


@jax.custom_vjp
def _written(x: Array) -> Array:
    return x


_written.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


def for_each_row(x: Float[Array, "*shape"], times: int, execution: Execution) -> Float[Array, "#batch *shape"]:
    """`x` for each row of a batch of `times`, to be added to something that has the batch.

    With `Products.FLAT` the sum over the batch in its gradient is a product with ones: as a sum over a first axis XLA's
    CPU compiler gives it to a library that takes fifty times as long.
    """
    if execution.products is Products.WHOLE:
        return x[None]
    batch = execution.rules.spec("batch")
    layout = PartitionSpec(*batch, *jax.typeof(x).sharding.spec)
    return jnp.einsum("b,...->b...", jnp.ones(times, x.dtype, out_sharding=batch), x, out_sharding=layout)
