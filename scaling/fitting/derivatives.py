"""What the solver asks of a law at a point: objective, gradient and curvature, exact, in one pass over the rows.

Laws are formulas of anyone's making, so derivatives come from JAX, in forward mode and one parameter at a time: most
second derivatives of a law are then zero and cost nothing. Powers and exponentials are what a pass spends its time on;
each is evaluated once (`_exp`), however many derivatives use it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.extend.core.primitives import exp_p, pow_p
from jaxtyping import Float

from scaling.laws import Law, Scale

Columns = dict[str, jax.Array]


class Expansion(NamedTuple):
    """The objective about a point, for each problem of a batch; derivatives in the solver's coordinates.

    Attributes:
        value: sum over rows of weight x Huber(log residual); inf where the law is not finite.
        gradient: its first derivatives.
        gauss: matrix of the quadratic that touches the objective here and nowhere lies below it, but for the law's own
            curvature: Gauss-Newton, each row weighted by Huber'(r) / r.
        hessian: the exact second derivatives.
    """

    value: Float[np.ndarray, " batch"]
    gradient: Float[np.ndarray, "batch parameters"]
    gauss: Float[np.ndarray, "batch parameters parameters"]
    hessian: Float[np.ndarray, "batch parameters parameters"]


@lru_cache(maxsize=64)
def compiled(law: Law) -> Callable[..., Expansion]:
    """The expansion of a law at (theta, target, weights, columns, delta): one row a problem, but columns shared."""
    return jax.jit(jax.vmap(lambda *problem: _expand(law, *problem), in_axes=(0, 0, 0, None, 0)))


def _huber(residual: jax.Array, delta: jax.Array) -> jax.Array:
    size = jnp.abs(residual)
    return jnp.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))


def _values(law: Law, theta: Sequence[jax.Array]) -> dict[str, jax.Array]:
    return {p.name: jnp.exp(theta[i]) if p.scale is Scale.LOG else theta[i] for i, p in enumerate(law.parameters)}


def _expand(law: Law, theta, target, weights, columns: Columns, delta) -> Expansion:
    keep = jax.lax.optimization_barrier  # what several sums read is computed once
    point, every = list(theta), range(len(law.parameters))

    def predict(*theta):
        return _sharing(law.formula, columns | _values(law, theta))

    def slope(function, i):
        """The derivative of a function of the parameters in one of them, again such a function."""

        def derivative(*theta):
            along = lambda moved: function(*theta[:i], moved, *theta[i + 1 :])  # noqa: E731
            return jax.jvp(along, (theta[i],), (jnp.ones_like(theta[i]),))[1]

        return derivative

    predicted = predict(*point)
    residual = target - jnp.log(predicted)
    value = jnp.sum(jnp.where(weights > 0, weights * _huber(residual, delta), 0.0))
    size = jnp.abs(residual)
    reweighted = weights * jnp.where(size <= delta, 1.0, delta / size)
    pull = reweighted * residual
    inside = weights * (size <= delta)
    predicted, pull, reweighted, curving = keep((predicted, pull, reweighted, inside + pull))
    slopes = [slope(predict, i) for i in every]
    jacobian = keep(jnp.stack([along(*point) / predicted for along in slopes]))
    gauss, outer = jnp.split(
        keep(jnp.concatenate([jacobian * reweighted[None], jacobian * curving[None]])) @ jacobian.T, 2
    )
    # With p = log L: Hess p = Hess L / L - grad p grad p', whose second half is in `curving`.
    share = keep(pull / predicted)
    bends = {(i, j): jnp.sum(share * slope(slopes[i], j)(*point)) for i in every for j in every if i <= j}
    hessian = outer - jnp.array([[bends[min(i, j), max(i, j)] for j in every] for i in every])
    return Expansion(jnp.where(jnp.isfinite(value), value, jnp.inf), -jacobian @ pull, gauss, hessian)


@jax.custom_jvp
def _exp(x: jax.Array) -> jax.Array:
    """The exponential, kept: without the barrier XLA repeats it in every sum that a derivative of it enters."""
    return jax.lax.optimization_barrier(jnp.exp(x))


@_exp.defjvp
def _exp_jvp(primals, tangents):
    value = _exp(*primals)
    return value, value * tangents[0]


def _sharing(formula: Callable[..., jax.Array], values: dict[str, jax.Array]) -> jax.Array:
    """A formula of named values, with its exponentials shared and x^y as exp(y log x), a fifth of XLA's own cost."""
    traced = jax.make_jaxpr(lambda values: formula(**values))(values)
    return _run(traced.jaxpr, traced.consts, jax.tree.leaves(values))[0]


def _run(jaxpr, consts: Sequence, inputs: Sequence) -> list:
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        primitive, arguments = equation.primitive, list(map(read, equation.invars))
        if primitive is exp_p:
            results = [_exp(*arguments)]
        elif primitive is pow_p:
            base, power = arguments
            results = [_exp(power * jnp.log(jnp.where(base == 0, 1e-300, base)))]
        elif primitive.name == "jit":  # a function of jax.numpy
            inner = equation.params["jaxpr"]
            results = _run(inner.jaxpr, inner.consts, arguments)
        else:
            results = primitive.bind(*arguments, **primitive.get_bind_params(equation.params))
            results = results if primitive.multiple_results else [results]
        known.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))
