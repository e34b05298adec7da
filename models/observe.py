"""Values inside a model, asked for by name, without a word about it in the model's code.

A model names what may be worth seeing (`checkpoint_name(x, "residual")`, which is nothing in the compiled program).
`observed` traces a function and makes the values of the names asked for further results of the trace. It is a function
of JAX like another: it can be compiled and differentiated, and what was not asked for costs nothing.

    hidden, seen = observed(model, "residual")(tokens)
    seen["residual"]                        # what goes into the first block, and what comes out of each
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def observed(function: Callable, *names: str) -> Callable[..., tuple[Any, dict[str, list[jax.Array]]]]:
    """`function` that returns its result, and the values of each name in the order they are computed.

    Raises:
        ValueError: if nothing has the name, or only what a loop or a checkpointed part computes: choose
            `Layers.UNROLL` and `Remat.NONE`.
    """

    def run(*args, **kwargs):
        flat, structure = jax.tree.flatten((args, kwargs))

        def plain(*flat):
            args, kwargs = jax.tree.unflatten(structure, flat)
            return function(*args, **kwargs)

        closed, shape = jax.make_jaxpr(plain, return_shape=True)(*flat)
        steps = [step for step in closed.jaxpr.eqns if step.primitive.name == "name" and step.params["name"] in names]
        found = [step.params["name"] for step in steps]
        if absent := [name for name in names if name not in found]:
            raise ValueError(
                f"nothing is called '{absent[0]}' in what was computed, outside of loops and checkpointed parts"
            )
        outputs = [*closed.jaxpr.outvars, *(step.outvars[0] for step in steps)]
        told = closed.jaxpr.debug_info._replace(result_paths=None)
        wider = closed.jaxpr.replace(outvars=outputs, debug_info=told)
        results = jaxpr_as_fun(ClosedJaxpr(wider, closed.consts))(*flat)
        count = len(closed.jaxpr.outvars)
        seen: dict[str, list[jax.Array]] = {name: [] for name in names}
        for name, value in zip(found, results[count:], strict=True):
            seen[name].append(value)
        return jax.tree.unflatten(jax.tree.structure(shape), results[:count]), seen

    return run
