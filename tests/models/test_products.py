"""A product laid flat is the product, in values, gradients and layout, wherever axes are split."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.execution import Execution, Products
from models.products import for_each_row, product, written
from parallel.mesh import device_mesh
from parallel.sharding import Rules

SIZES = dict(b=8, l=4, d=6, k=4, g=2, h=3, v=12)
AXES = dict(b="batch", l="length", d="embed", k="kv_heads", g="groups", h="head_dim", v="vocab")
SPLIT = Rules(length=("sequence",), stream=("sequence",))


def outcome(equation, products, mesh, rules):
    """Value, gradients, layout of the value, and the ranks of what is multiplied."""
    x, matrix, result = equation.replace("->", ",").split(",")
    execution = Execution(rules=rules, products=products)
    over, axes = [AXES[letter] for letter in matrix], [AXES[letter] for letter in result]
    draw = np.random.default_rng(0)
    values, weights, wanted = (
        draw.normal(size=[SIZES[letter] for letter in letters]) for letters in (x, matrix, result)
    )

    def total(values, weights):
        found = product(equation, values, weights, axes, over, execution)
        return (found * wanted).sum(), found

    with jax.set_mesh(mesh):

        def place(array, letters):
            return jax.device_put(
                array.astype(np.float32),
                jax.NamedSharding(mesh, rules.spec(*(AXES[letter] for letter in letters))),
            )

        wanted = place(wanted, result)
        arguments = place(values, x), place(weights, matrix)
        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, found), gradients = step(*arguments)
        ranks = {
            len(operand.aval.shape)
            for equation in jax.make_jaxpr(lambda *both: total(*both)[1])(*arguments).eqns
            if equation.primitive.name == "dot_general"
            for operand in equation.invars
        }
    return found, gradients, ranks


@pytest.mark.parametrize("equation", ["bld,dkgh->bkglh", "bkglh,kghd->bld", "bld,vd->blv"])
@pytest.mark.parametrize(
    ("mesh", "rules", "flat"), [("fsdp=2,tensor=4", Rules(), True), ("sequence=4,data=2", SPLIT, False)]
)
def test_flat_is_whole(equation, mesh, rules, flat):
    mesh = device_mesh(mesh)
    found, gradients, ranks = outcome(equation, Products.FLAT, mesh, rules)
    wanted, known, _ = outcome(equation, Products.WHOLE, mesh, rules)
    assert found.sharding == wanted.sharding
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, known, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert (ranks == {2}) is flat  # rows whose places are split cannot be laid together


@pytest.mark.parametrize("matrix", ["fd", "df"])
def test_the_gradient_of_a_matrix_is_computed_short_side_first(matrix):
    """In either layout of the matrix, by what XLA compiled: the other order takes a third more time."""
    sizes, axes = dict(f=32, d=8), dict(f="hidden", d="embed")
    x, weights = jnp.ones((4, 2, 32)), jnp.ones([sizes[letter] for letter in matrix])
    execution = Execution(products=Products.FLAT)

    def total(weights):
        over = [axes[letter] for letter in matrix]
        y = product(f"blf,{matrix}->bld", x, weights, ("batch", "length", "embed"), over, execution)
        return jnp.square(y).sum()

    compiled = jax.jit(jax.grad(total)).lower(weights).compile().as_text()
    made = set(re.findall(r"f32\[([\d,]+)\]\S* dot\(", compiled))
    assert "8,32" in made
    assert "32,8" not in made


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=2,tensor=4"])
def test_a_sum_for_each_row_is_broadcasting(mesh):
    """In values and gradients, and without a sum over the first axis."""
    bias = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)
    scores = np.random.default_rng(1).normal(size=(8, 4, 1, 8, 8)).astype(np.float32)
    rules, reductions = Rules(), {}
    with jax.set_mesh(mesh := device_mesh(mesh)):
        layout = rules.spec("kv_heads", "groups", None, None), rules.spec("batch", "kv_heads", "groups", None, None)
        bias, scores = (
            jax.device_put(array, jax.NamedSharding(mesh, spec))
            for array, spec in zip((bias, scores), layout, strict=True)
        )
        found = {}
        for products in Products:

            def total(bias, products=products):
                both = scores + for_each_row(bias, len(scores), Execution(products=products))
                return jnp.square(both).sum()

            found[products] = jax.value_and_grad(total)(bias)
            equations = jax.make_jaxpr(jax.grad(total))(bias).eqns
            reductions[products] = sum(equation.primitive.name == "reduce_sum" for equation in equations)
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert reductions[Products.FLAT] < reductions[Products.WHOLE]


@pytest.mark.parametrize("products", Products)
def test_a_gradient_is_written_out_before_it_is_read(products):
    """Behind a barrier in the backward pass alone, where the compiler heeds it; values stay what they are."""
    execution = Execution(products=products)

    def total(x):
        return jnp.square(written(jnp.sin(x), execution)).sum()

    x = jnp.linspace(-2.0, 2.0, 8)
    np.testing.assert_array_equal(jax.grad(total)(x), jax.grad(lambda x: jnp.square(jnp.sin(x)).sum())(x))
    assert "optimization_barrier" not in str(jax.make_jaxpr(total)(x))
    backward = str(jax.make_jaxpr(jax.grad(total))(x))
    assert ("optimization_barrier" in backward) is (products is Products.WHOLE)
