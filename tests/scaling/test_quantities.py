"""What follows from a law: the numeric optimum against the closed form, and against a brute-force search."""

from dataclasses import replace

import numpy as np
import pytest
from tables import TRUTH

from scaling import laws
from scaling.fitting import quantities
from scaling.fitting.powerlaw import Compute

SIX = Compute(6.0, 1.0, 0.0)
DRAWS = {name: value * np.array([1.0, 1.02, 0.97]) for name, value in TRUTH.items()}


@pytest.mark.parametrize("cost", [SIX, Compute(10.0, 0.97, 0.0)])
@pytest.mark.parametrize("flops", [1e12, 1e21])
def test_the_numeric_optimum_is_the_closed_form(cost, flops):
    other = replace(laws.CHINCHILLA, name="chinchilla written again")
    exact, found = (quantities.optimum(law, DRAWS, cost, flops) for law in (laws.CHINCHILLA, other))
    for one, two, rtol in zip(exact, found, (1e-6, 1e-6, 1e-12), strict=True):
        np.testing.assert_allclose(two, one, rtol=rtol)
    for which in (quantities.params_exponent, quantities.tokens_exponent):
        np.testing.assert_allclose(which(other, cost, flops)(DRAWS), which(laws.CHINCHILLA, cost)(DRAWS), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("chinchilla-tied", {"E": 1.8, "A": 500.0, "B": 900.0, "alpha": 0.33}),
        ("kaplan-nd", {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}),
    ],
)
def test_other_laws_of_two_powers_have_the_closed_form_too(name, values):
    law, cost = laws.get(name), Compute(10.0, 0.97, 0.0)
    draws = {name: value * np.array([1.0, 1.02]) for name, value in values.items()}
    other = replace(law, name="written again")
    for one, two in zip(*(quantities.optimum(each, draws, cost, 1e21) for each in (law, other)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_the_optimum_spends_the_budget_and_no_neighbour_is_lower():
    cost = Compute(10.0, 0.97, 0.0)
    params, tokens, loss = quantities.optimum(laws.CHINCHILLA, TRUTH, cost, 1e13)
    assert cost.flops(params, tokens) == pytest.approx(1e13)
    for factor in (0.99, 1.01):
        size = params * factor
        assert laws.CHINCHILLA({"params": size, "tokens": cost.tokens(1e13, size)}, TRUTH) > loss


def test_hoffmanns_constants_give_the_papers_region():
    """Chinchilla is 70B parameters and 1.4T tokens; the constants printed beside it say about half and twice that."""
    printed = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    params, tokens, _ = quantities.optimum(laws.CHINCHILLA, printed, SIX, 5.76e23)
    assert 30e9 < params < 45e9
    assert 2e12 < tokens < 3e12
    assert quantities.params_exponent(laws.CHINCHILLA, SIX)(printed) == pytest.approx(0.28 / 0.62)


def test_a_law_without_an_optimum_has_none():
    rising = replace(
        laws.CHINCHILLA, name="only size", formula=lambda params, tokens, E, A, B, alpha, beta: E + A / params
    )
    assert np.isnan(quantities.optimum(rising, TRUTH, SIX, 1e12)[0])
    with pytest.raises(ValueError, match="does not read 'tokens'"):
        quantities.optimum(laws.get("power-params"), {"A": 1.0, "alpha": 0.1}, SIX, 1e12)
    with pytest.raises(ValueError, match="no parameter 'alfa'; did you mean 'alpha'"):
        quantities.parameter(laws.CHINCHILLA, "alfa")
    with pytest.raises(ValueError, match="name a budget"):
        quantities.params_exponent(laws.get("kaplan-nd"), SIX)
