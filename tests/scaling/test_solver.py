"""The solver's derivatives against differences, its optima against its own order, starts, threads and other shapes."""

import jax.numpy as jnp
import numpy as np
import pytest
from tables import TRUTH, isoflop_table

from scaling import laws
from scaling.fitting import solver
from scaling.fitting.derivatives import compiled
from scaling.fitting.starts import starting_points
from scaling.laws import Law, coefficient, exponent, offset

PIECES = Law(
    name="pieces",
    formula=lambda tokens, change, E, B, beta, c: E + B * tokens**-beta + c * jnp.sum(jnp.sqrt(change), axis=-1),
    columns=("tokens", "change"),
    parameters=(offset(), coefficient("B"), exponent("beta"), coefficient("c")),
    source="here",
    unchecked=("change",),
)
REPEATS = Law(
    name="repeats",
    formula=lambda tokens, repeats, E, B, beta, c, k: E + B * tokens**-beta + c * repeats**k,
    columns=("tokens", "repeats"),
    parameters=(offset(), coefficient("B"), exponent("beta"), coefficient("c"), exponent("k")),
    source="here",
    unchecked=("repeats",),
)


def problem_of(law):
    generator = np.random.default_rng(3)
    columns = {name: np.exp(generator.uniform(2, 6, 32)) for name in law.columns}
    if law is PIECES:
        columns["change"] = generator.uniform(0, 1, (32, 3))
    if law is REPEATS:
        columns["repeats"] = np.arange(32.0) // 8  # zeros among them
    theta = {"E": 1.5, "B": 0.3, "A": 0.4, "alpha": 0.4, "beta": 0.5, "c": -1.0, "k": 0.7}
    theta = np.array([theta[name] for name in law.names])
    values = dict(zip(law.names, solver.decode(law, theta), strict=True))
    target = np.log(law(columns, values)) + 0.05 * generator.standard_t(3, 32)
    return columns, theta, target, generator.uniform(0, 2, 32) * (np.arange(32) % 5 > 0)


@pytest.mark.parametrize("delta", [0.02, solver.LEAST_SQUARES])
@pytest.mark.parametrize("law", [laws.CHINCHILLA, PIECES, REPEATS], ids=lambda law: law.name)
def test_derivatives_are_exact(law, delta):
    """Against central differences of the objective as a sum written out in NumPy."""
    columns, theta, target, weights = problem_of(law)

    def objective(theta):
        size = np.abs(target - np.log(law(columns, dict(zip(law.names, solver.decode(law, theta), strict=True)))))
        return float(weights @ np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)))

    with solver.on_host():
        shared = target[None], weights[None], columns, np.array([delta])
        at = compiled(law)(theta[None], *shared)
        steps = 1e-6 * np.eye(len(theta))
        slopes = [
            np.ravel(compiled(law)((theta + s)[None], *shared).gradient)
            - np.ravel(compiled(law)((theta - s)[None], *shared).gradient)
            for s in steps
        ]
    assert float(at.value[0]) == pytest.approx(objective(theta), rel=1e-12)
    differences = np.array([(objective(theta + s) - objective(theta - s)) / 2e-6 for s in steps])
    np.testing.assert_allclose(at.gradient[0], differences, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(at.hessian[0], np.array(slopes) / 2e-6, rtol=1e-5, atol=1e-5)
    assert np.linalg.eigvalsh(at.gauss[0]).min() > 0


def bootstrap_problem(resamples):
    frame = isoflop_table(held_out=False)
    columns = {name: frame[name].to_numpy() for name in ("params", "tokens")}
    weights = np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), size=resamples).astype(float)
    theta = solver.encode(laws.CHINCHILLA, np.array([TRUTH[name] for name in laws.CHINCHILLA.names]))
    theta = np.repeat(theta[None], resamples, axis=0)
    return columns, {
        "theta": theta,
        "target": np.log(frame["loss"].to_numpy())[None],
        "weights": weights,
        "delta": 1e-2,
    }


def test_optima_do_not_depend_on_threads_or_on_what_else_is_solved(monkeypatch):
    columns, problem = bootstrap_problem(1100)
    monkeypatch.setattr(solver, "processors", lambda: 1)
    one = solver.minimise(laws.CHINCHILLA, columns, **problem)
    monkeypatch.setattr(solver, "processors", lambda: 3)
    three = solver.minimise(laws.CHINCHILLA, columns, **problem)
    part = {"theta": problem["theta"][7:9], "weights": problem["weights"][7:9]}
    alone = solver.minimise(laws.CHINCHILLA, columns, **(problem | part))
    for name, first, second, few in zip(one._fields, one, three, alone, strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)
        np.testing.assert_array_equal(first[7:9], few, err_msg=name)


def test_every_optimum_is_certified_and_its_hessian_bends_up():
    columns, problem = bootstrap_problem(300)
    found = solver.minimise(laws.CHINCHILLA, columns, **problem)
    low, high = solver.limits(laws.CHINCHILLA)
    inside = ((found.theta > low + 1e-6) & (found.theta < high - 1e-6)).all(axis=1)
    assert inside.mean() > 0.9
    assert (found.slack < 1e-9).all()
    assert (found.gradient < 1e-6).all()
    assert (np.linalg.eigvalsh(found.hessian[inside])[:, 0] > 0).all()


def test_a_start_where_the_law_is_not_finite_is_infinite_and_hurts_no_other():
    columns, problem = bootstrap_problem(3)
    problem["theta"][1] = np.nan
    found = solver.minimise(laws.CHINCHILLA, columns, **problem)
    assert np.isfinite(found.value).tolist() == [True, False, True]


@pytest.mark.parametrize("count", [None, 400])
def test_starts_are_solved_for_what_is_linear_and_spread_over_the_rest(count):
    frame = isoflop_table(held_out=False, noise=0.0)
    columns = {name: frame[name].to_numpy() for name in ("params", "tokens")}
    points = starting_points(laws.CHINCHILLA, columns, frame["loss"].to_numpy(), count=count)
    assert len(points) == (count or 36)
    exponents = points[:, 3:]
    assert len(np.unique(exponents, axis=0)) == len(points)
    predicted = laws.CHINCHILLA(columns, dict(zip(laws.CHINCHILLA.names, points.T[:, :, None], strict=True)))
    off = np.abs(predicted / frame["loss"].to_numpy() - 1).max(axis=1)
    assert off.max() < 0.3  # whatever the exponents, the rest brings the law near the table
    near = np.argmin(np.sum((exponents - [TRUTH["alpha"], TRUTH["beta"]]) ** 2, axis=1))
    assert off[near] < 0.01


def test_formulas_compile_each_exponential_once():
    """The speed of a step: derivatives of every order share the two powers of the law."""
    columns, theta, target, weights = problem_of(laws.CHINCHILLA)
    with solver.on_host():
        batch = (np.repeat(each[None], 4, axis=0) for each in (theta, target, weights))
        text = compiled(laws.CHINCHILLA).lower(*batch, columns, np.full(4, 1e-3)).compile().as_text()
    shared = [line for line in text.splitlines() if "exponential(" in line and "f64[4,32]" in line]
    assert 1 <= len(shared) <= 2
    assert " power(" not in text
