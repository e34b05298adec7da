"""The three approaches against a known law, on designs that show it and on designs that do not."""

import json

import numpy as np
import pytest
from tables import BUDGETS, HELD_OUT, TRUTH, curves_of, flops_per_token, isoflop_table, loss

from scaling import published, runs
from scaling.approaches.frontier import check_curves, frontier, lower_envelope
from scaling.approaches.held_out import HeldOut, as_held_out, predict_held_out
from scaling.approaches.isoflop import group_budgets, isoflop
from scaling.approaches.study import Approach, study
from scaling.estimate import Estimate
from scaling.fitting.powerlaw import Compute, compute, line
from scaling.fitting.quantities import optimum
from scaling.laws import CHINCHILLA

TABLE = isoflop_table()


@pytest.fixture(scope="module")
def made():
    return study(TABLE, curves_of(TABLE), resamples=300)


def best_by_search(flops):
    """The optimum of the true law along a fine grid of sizes: no closed form, no fit."""
    params = np.geomspace(1e3, 1e7, 400_001)
    tokens = flops / flops_per_token(params)
    i = int(np.argmin(loss(params, tokens)))
    return params[i], tokens[i], loss(params[i], tokens[i])


def true_exponent():
    (low, *_), (high, *_) = best_by_search(1e11), best_by_search(1e13)
    return np.log(high / low) / np.log(100)


def test_the_closed_form_is_the_minimum():
    cost = Compute(10.0, 0.974, 0.0)
    params, tokens, _ = optimum(CHINCHILLA, TRUTH, cost, HELD_OUT)
    searched = best_by_search(HELD_OUT)
    assert params == pytest.approx(searched[0], rel=1e-3)
    assert tokens == pytest.approx(searched[1], rel=1e-3)
    assert cost.flops(params, tokens) == pytest.approx(HELD_OUT)


def test_every_approach_holds_the_true_exponents_and_optimum(made):
    a, (params, tokens, lowest) = true_exponent(), best_by_search(HELD_OUT)
    assert set(made.exponents()) == set(Approach)
    for approach in (Approach.ISOFLOP, Approach.PARAMETRIC):
        assert a in made.exponents()[approach][0]
        found = made.optima(HELD_OUT)[approach]
        assert params in found.params
        assert tokens in found.tokens
        assert found.loss.value == pytest.approx(lowest, rel=0.05)
    assert lowest in made.optimum(HELD_OUT).loss
    envelope = made.optima(HELD_OUT)[Approach.FRONTIER]
    assert a in made.exponents()[Approach.FRONTIER][0]
    assert envelope.params.value == pytest.approx(params, rel=0.35)


@pytest.mark.parametrize("approach", [Approach.ISOFLOP, Approach.PARAMETRIC])
def test_without_noise_the_optimum_is_found_closely(approach):
    made = study(isoflop_table(noise=1e-6), resamples=50)
    params, tokens, lowest = best_by_search(HELD_OUT)
    found = made.optima(HELD_OUT)[approach]
    assert found.params.value == pytest.approx(params, rel=0.06)
    assert found.tokens.value == pytest.approx(tokens, rel=0.06)
    assert found.loss.value == pytest.approx(lowest, rel=0.02)


def test_the_held_out_run_is_predicted_and_never_fitted(made):
    assert len(made.frame) == len(TABLE) - 1
    (held,) = predict_held_out(made, TABLE)
    assert held.inside
    assert abs(held.error) < 0.02
    assert held.predicted.low < held.predicted.value < held.predicted.high
    spoiled = TABLE.copy()
    spoiled.loc[spoiled["role"] == "held-out", "loss"] *= 2
    assert study(spoiled, curves_of(TABLE), resamples=300).to_dict() == made.to_dict()
    assert not predict_held_out(made, spoiled)[0].inside


def test_held_out_runs_come_as_objects_mappings_or_lists():
    held = HeldOut(params=1e5, tokens=4e6, flops=4e12, predicted=Estimate(3.2, 3.1, 3.3), loss=3.25)
    assert as_held_out(held) == as_held_out(vars(held)) == as_held_out([held]) == (held,)
    assert as_held_out(None) == ()
    assert held.to_dict()["inside"] is True


def test_the_same_seed_gives_the_same_numbers_and_the_json_holds_them(made, tmp_path):
    again = study(TABLE, curves_of(TABLE), resamples=300)
    assert again.to_dict() == made.to_dict()
    path = made.write(tmp_path / "fit.json", held_out=[each.to_dict() for each in predict_held_out(made, TABLE)])
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["approaches"]["parametric"]["parameters"] == made.parametric.bootstrap.fit.parameters
    assert found["approaches"]["parametric"]["intervals"]["alpha"]["method"].startswith("bootstrap of residuals")
    assert found["convention"] == {"params": "params", "flops": "flops"}
    assert found["held_out"][0]["loss"] == TABLE["loss"].iloc[-1]


def test_the_cost_of_a_token_is_read_off_the_table(made):
    assert made.cost.k == pytest.approx(10, rel=1e-6)
    assert made.cost.g == pytest.approx(0.974, rel=1e-6)
    n, d = np.array([1e8, 1e9]), np.array([1e10, 1e11])
    assert compute(n, d, 6 * n * d) == Compute(6.0, 1.0, 0.0)


def test_conventions_change_the_exponent_and_are_recorded():
    """Counting parameters without an embedding that shrinks relative to the model steepens N_opt (Kaplan's 0.73)."""
    table = isoflop_table()
    table["params_nonembedding"] = table["params"] ** 1.2 / 20
    kaplan = runs.Convention(params="params_nonembedding")
    other = study(table, convention=kaplan, resamples=50)
    plain = study(table, resamples=50)
    assert other.exponents()[Approach.ISOFLOP][0].value == pytest.approx(
        1.2 * plain.exponents()[Approach.ISOFLOP][0].value, rel=0.02
    )
    assert other.to_dict()["convention"]["params"] == "params_nonembedding"


def test_budgets_are_grouped_by_compute():
    generator = np.random.default_rng(0)
    flops = np.concatenate([budget * generator.uniform(0.96, 1.04, 5) for budget in BUDGETS])
    shuffled = generator.permutation(len(flops))
    groups = group_budgets(flops[shuffled])
    assert [sorted(shuffled[rows] // 5) for rows in groups] == [[i] * 5 for i in range(4)]
    spread = np.geomspace(1, 10, 50)
    assert max(np.ptp(np.log(spread[rows])) for rows in group_budgets(spread)) <= np.log(1.2)


def test_a_budget_without_a_minimum_is_left_out_and_said():
    table = isoflop_table(noise=0.002, held_out=False, sizes=9)
    best = table[table["flops"] == BUDGETS[0]]["loss"].idxmin()
    size = table.loc[best, "params"]
    table = table[(table["flops"] != BUDGETS[0]) | (table["params"] > size * 1.01)].reset_index(drop=True)
    found = isoflop(runs.check(table).frame, resamples=50)
    assert [bool(budget.refused) for budget in found.budgets] == [True, False, False, False]
    assert any("5e+10" in note and ("bracketed" in note or "outside" in note) for note in found.notes)
    clean = isoflop(runs.check(isoflop_table(noise=0.002, held_out=False)).frame, resamples=50)
    assert not clean.notes


def test_unbracketed_sweeps_are_refused_not_fitted():
    table = isoflop_table(noise=0.0, held_out=False)
    table = table[table["params"] < 2.2e4 * (table["flops"] / 2e11) ** 0.48].reset_index(drop=True)
    with pytest.raises(ValueError, match="two budgets that show a minimum and found 0"):
        isoflop(runs.check(table).frame, resamples=50)
    made = study(table, resamples=50)
    assert Approach.ISOFLOP in made.missing
    assert any("could not be fitted" in each.text for each in made.diagnostics if each.severity.value == "warning")


@pytest.mark.slow
def test_collinear_tables_are_refused_and_one_size_is_flagged():
    table = isoflop_table(held_out=False, sizes=5)
    table["tokens"] = 20 * table["params"]
    table["flops"] = 6 * table["params"] * table["tokens"]
    table["loss"] = loss(table["params"], table["tokens"])
    with pytest.raises(ValueError, match=r"no approach can be fitted.*collinear"):
        study(table, resamples=50)
    one = isoflop_table(held_out=False, sizes=5)
    one["params"], one["flops"] = 2e4, 6 * 2e4 * one["tokens"]
    made = study(one, resamples=50)
    assert {Approach.ISOFLOP, Approach.FRONTIER} <= set(made.missing)
    assert any("same params" in each.text for each in made.diagnostics)


def test_drift_beyond_the_fitted_runs_widens_the_prediction():
    """A law that bends at the largest budget: the backtest sees it, says so, and new runs get a wider interval."""
    table = isoflop_table(noise=0.002)
    bent = table.copy()
    bent.loc[bent["flops"] == BUDGETS[-1], "loss"] *= 1.06
    straight, drifted = study(table, resamples=100), study(bent, resamples=100)
    assert drifted.backtest.error > 0.04 > straight.backtest.error
    assert any("drifts" in each.text for each in drifted.diagnostics)
    at = (1e5, 4e6)
    width = [each.predict(*at).high - each.predict(*at).low for each in (straight, drifted)]
    assert width[1] > 2 * width[0]


def test_the_envelope_of_curves_and_of_finals():
    table = runs.check(isoflop_table(noise=0.0, held_out=False)).frame
    curves = frontier(table, curves_of(isoflop_table(noise=0.0)), resamples=100)
    finals = frontier(table)
    assert curves.curves
    assert not finals.curves
    assert np.all(np.diff(curves.points["loss"]) < 0)
    for found in (curves, finals):
        assert found.params.exponent == pytest.approx(true_exponent(), abs=0.12)
    with pytest.raises(ValueError, match="no column 'flops'; did you mean 'flop'"):
        check_curves(curves_of(TABLE).rename(columns={"flops": "flop"}))
    assert list(lower_envelope(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 2, 2.5]))) == [0, 2]


def test_kaplan_laws_of_one_variable():
    """On runs that only N limits, the exponent of L(N) is the one put in."""
    table = isoflop_table(held_out=False)
    table["loss"] = (1e10 / table["params"]) ** 0.08
    made = study(table, resamples=50)
    assert made.kaplan["kaplan-n"].parameters == pytest.approx({"N_c": 1e10, "alpha_N": 0.08}, rel=1e-6)


def test_a_power_law_has_students_interval():
    generator, held = np.random.default_rng(0), 0
    x = np.geomspace(1, 100, 5)
    for seed in range(200):
        y = 3 * x**0.5 * np.exp(0.05 * generator.standard_normal(5))
        held += 0.5 in line(x, y, seed=seed).slope
    assert 180 <= held <= 199
    assert line(x, 3 * x**0.5).coefficient == pytest.approx(3)
    with pytest.raises(ValueError, match="two different values"):
        line(np.ones(3), np.ones(3))


def test_tables_no_approach_can_use_are_refused():
    with pytest.raises(ValueError, match="no approach can be fitted"):
        study(TABLE.head(4), resamples=50)
    with pytest.raises(ValueError, match="positive number of FLOPs"):
        study(TABLE, resamples=50).optima(-1.0)


def test_published_constants_give_the_papers_own_figures():
    a = {each.name: each for each in published.ALLOCATIONS}
    params, tokens, _ = optimum(CHINCHILLA, published.law("Besiroglu").parameters, published.SIX_ND, 5.76e23)
    assert params == pytest.approx(70e9, rel=0.1)
    assert tokens == pytest.approx(1.4e12, rel=0.1)
    ends = [optimum(CHINCHILLA, published.law("Hoffmann").parameters, published.SIX_ND, c)[0] for c in (1e20, 1e24)]
    assert np.log(ends[1] / ends[0]) / np.log(1e4) == pytest.approx(a["Hoffmann, approach 3"].a, abs=0.01)
    # Kaplan et al., section 6.2: 1 / alpha_C = 1 / 0.76 + 1 / 0.21 + 1 / alpha_N, and N grows as C^(alpha_C / alpha_N);
    # their own theory stays a little below the 0.73 they measured.
    alpha_n = published.law("Kaplan L(N)").parameters["alpha_N"]
    alpha_c = 1 / (1 / 0.76 + 1 / 0.21 + 1 / alpha_n)
    assert alpha_c == pytest.approx(published.law("Kaplan L(C_min)").parameters["alpha_C"], abs=0.005)
    assert alpha_c / alpha_n == pytest.approx(a["Kaplan"].a, abs=0.05)
    # Their joint law meets L(N) where data abound.
    both = published.law("Kaplan L(N, D)")(params=1e9, tokens=1e30)
    assert both == pytest.approx(published.law("Kaplan L(N)")(params=1e9), rel=0.04)
    with pytest.raises(ValueError, match="did you mean 'Hoffmann'"):
        published.law("Hofmann")
