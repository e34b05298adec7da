"""Profiles against closed forms, an independent minimiser, and tables that determine nothing."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from tables import TRUTH, isoflop_table, published

from scaling import laws, runs
from scaling.certainty.constrained import HELD, Held
from scaling.certainty.covariance import Noise
from scaling.certainty.identifiability import Standing, identify
from scaling.certainty.profile import End, profile, profiles
from scaling.fitting import quantities, solver
from scaling.fitting.fit import Kind, Objective, fit
from scaling.fitting.powerlaw import Compute
from scaling.laws import CHINCHILLA

COST = Compute(10.0, 0.974, 0.0)
SQUARES = Objective(Kind.LEAST_SQUARES)


def small_fit(seed=0, **more):
    return fit(runs.Table(isoflop_table(seed=seed, held_out=False, **more)), "chinchilla")


def straight_line(rows=12):
    """A law that is a straight line in log-log, so that ordinary least squares is the exact answer."""
    generator = np.random.default_rng(3)
    flops = np.geomspace(1e9, 1e13, rows)
    frame = isoflop_table(held_out=False, sizes=rows // 4).assign(flops=flops)
    frame["loss"] = 40 * flops**-0.1 * np.exp(0.02 * generator.standard_normal(rows))
    return fit(runs.Table(frame), "power-flops", objective=SQUARES), np.log(flops), np.log(frame["loss"])


def test_least_squares_on_a_straight_line_gives_students_t_exactly():
    found, x, y = straight_line()
    line = scipy.stats.linregress(x, y)
    for level in (0.8, 0.95):
        reach = scipy.stats.t.ppf((1 + level) / 2, len(x) - 2) * line.stderr
        low, high = profile(found, "alpha", level=level).interval
        assert [low, high] == pytest.approx([-line.slope - reach, -line.slope + reach], rel=1e-3)
    alpha = profile(found, "alpha")
    expected = alpha.threshold * ((alpha.values + line.slope) / (alpha.interval[1] + line.slope)) ** 2
    np.testing.assert_allclose(alpha.increase, expected, rtol=0.01, atol=1e-6 * alpha.threshold)


def test_a_profile_does_not_depend_on_how_a_quantity_is_written():
    found = small_fit()
    exponent = quantities.params_exponent(CHINCHILLA, COST)
    odds = quantities.Quantity("odds", "a / (1 - a)", lambda p: (a := exponent(p)) / (1 - a), positive=True)
    plain, written = profiles(found, (exponent, odds))
    for end, other in zip(plain.interval, written.interval, strict=True):
        assert end / (1 - end) == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_the_constrained_optimum_is_no_worse_than_an_independent_minimiser_finds(delta):
    """N* at a budget held by writing B as a function of the rest, and the rest given to Nelder-Mead."""
    table = isoflop_table(held_out=False, sizes=10)
    found = fit(runs.Table(table), "chinchilla", objective=Objective(delta=delta))
    flops = 4e12
    result = profile(found, quantities.optimal_params(CHINCHILLA, COST, flops))
    n, d, target = (np.log(table[name].to_numpy()) for name in ("params", "tokens", "loss"))
    for point in (0, -1):
        log_n = np.log(result.values[point])

        def objective(x, log_n=log_n):
            offset, log_a, alpha, beta = x
            ratio = (alpha + COST.g * beta) * log_n - beta * np.log(flops / COST.k)
            log_b = log_a + np.log(alpha / (COST.g * beta)) - ratio
            size = np.abs(target - np.log(offset + np.exp(log_a - alpha * n) + np.exp(log_b - beta * d)))
            return np.sum(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)))

        offset, big_a, _, alpha, beta = result.parameters[point]
        here = np.array([offset, np.log(big_a), alpha, beta])
        assert objective(here) - found.value == pytest.approx(result.increase[point], rel=1e-5)
        options = {"maxiter": 3000, "maxfev": 3000, "xatol": 1e-10, "fatol": 1e-14}
        for shift in (0.0, 0.01):
            other = scipy.optimize.minimize(objective, here * (1 + shift), method="Nelder-Mead", options=options)
            assert other.fun - found.value >= result.increase[point] - 1e-4 * result.threshold


def test_quantities_are_held_to_the_stated_tolerance_and_the_profile_is_where_it_says():
    found = small_fit()
    wanted = (*CHINCHILLA.names, quantities.optimal_loss(CHINCHILLA, COST, 4e12))
    for each in profiles(found, wanted):
        draws = dict(zip(CHINCHILLA.names, each.parameters.T, strict=True))
        held = np.broadcast_to(each.quantity(draws), each.values.shape)
        np.testing.assert_allclose(held, each.values, rtol=50 * HELD)
        theta = solver.encode(CHINCHILLA, each.parameters)
        np.testing.assert_allclose(Held(found, ()).objective(theta) - found.value, each.increase, atol=1e-9)
        assert np.all(np.diff(each.values) > 0)
        assert each.increase.min() == 0.0
        assert not each.improved
        assert each.values[0] <= each.interval[0] < each.estimate.value < each.interval[1] <= each.values[-1]


def test_the_truth_costs_less_than_the_threshold_and_a_wrong_value_more():
    found = small_fit(seed=4)
    for name in ("E", "alpha", "beta"):
        result = profile(found, name)
        assert TRUTH[name] in result.estimate
        assert 3 * TRUTH[name] not in result.estimate


def test_what_a_table_does_not_determine_has_an_open_profile_and_says_so():
    table = isoflop_table(held_out=False)
    one_size = table.assign(tokens=table["tokens"].iloc[0])
    found = fit(runs.Table(one_size), "chinchilla")
    verdicts = identify(found, resamples=20)
    for name in ("B", "beta"):
        assert verdicts[name].profile.open_low or verdicts[name].profile.open_high
        assert verdicts[name].standing is Standing.NOT_IDENTIFIED
        assert "fits as well" in verdicts[name].text
    sound = identify(small_fit(), resamples=20)
    assert all(each.standing is Standing.IDENTIFIED for each in sound.verdicts)
    assert not any(each.profile.open_low or each.profile.open_high for each in sound.verdicts)


def test_a_floor_the_table_cannot_tell_from_zero_ends_at_its_bound():
    flops = np.geomspace(1e9, 1e11, 16)
    noise = np.exp(0.02 * np.random.default_rng(0).standard_normal(16))
    table = isoflop_table(held_out=False, sizes=4).assign(flops=flops, loss=40 * flops**-0.1 * noise)
    floor = profile(fit(runs.Table(table), "floor-flops", objective=SQUARES), "E")
    assert floor.below is End.BOUND
    assert floor.interval[0] == 0.0
    assert floor.open_low
    assert not floor.open_high
    assert "any E from its bound 0 to" in floor.words()
    assert "fits as well" in floor.words()


def repeated(noise, seed=0):
    """Data seen up to 64 times: R*_D = 15 is plain to see."""
    law = laws.get("data-constrained").fix(E=1.87, A=521.0, B=1488.0, alpha=0.353, beta=0.353, R_N=5.3)
    rows = [(n, u * e, u) for n in (1e8, 1e9) for u in (1e8, 1e9, 1e10) for e in (1, 4, 16, 64)]
    frame = isoflop_table(held_out=False).iloc[: len(rows)].reset_index(drop=True)
    frame[["params", "tokens", "unique_tokens"]] = np.array(rows)
    shocks = np.exp(noise * np.random.default_rng(seed).standard_normal(len(rows)))
    return law, frame.assign(loss=law(frame, {"R_D": 15.0}) * shocks)


def test_the_worth_of_repetition_is_identified_where_data_was_repeated():
    law, table = repeated(0.003)
    verdict = identify(fit(runs.Table(table), law), resamples=20)["R_D"]
    assert verdict.standing is Standing.IDENTIFIED
    assert 15.0 in verdict.profile.estimate


def test_the_worth_of_repetition_is_not_identified_by_the_published_table():
    """Muennighoff et al. hold E, A, B, alpha, beta and print R*_D = 15.4."""
    needs = ("params", "tokens", "unique_tokens", "loss")
    table = runs.load(published("data_constrained_182.csv"), needs=needs)
    law = laws.get("data-constrained").fix(E=1.87, A=521.0, B=1488.0, alpha=0.353, beta=0.353)
    verdict = identify(fit(table, law), resamples=20)["R_D"]
    assert verdict.standing is Standing.NOT_IDENTIFIED
    assert verdict.profile.open_high
    assert 3.5 < verdict.profile.interval[0] < 7
    assert "any R_D from" in verdict.text
    assert "above" in verdict.text
    below = verdict.profile.increase[verdict.profile.values >= 15.4]
    assert np.all(below < 0.5 * verdict.profile.threshold)


def test_chinchilla_points_say_which_parameters_move_together():
    names = {"params": "Model Size", "flops": "Training FLOP"}
    table = runs.load(published("chinchilla_points.csv"), columns=names).frame.sort_values("loss").iloc[:240]
    found = fit(runs.Table(table), "chinchilla")
    verdicts = identify(found, resamples=50)
    assert verdicts["A"].partners["alpha"] > 0.98
    assert "quote them together" in verdicts["A"].text
    assert "alpha" not in verdicts["beta"].partners
    # Noise that differs from run to run is what the bootstrap of pairs sees too; taking it for equal is too sure.
    ratio = quantities.tokens_per_param(CHINCHILLA, Compute(6.0, 1.0, 0.0), 5.76e23)
    differing, equal = (profile(found, ratio, noise=noise) for noise in (Noise.DIFFERING, Noise.EQUAL))
    assert differing.interval[0] == pytest.approx(7.7, rel=0.1)
    assert differing.interval[1] == pytest.approx(36.6, rel=0.2)
    assert np.log(np.divide(*equal.interval)) / np.log(np.divide(*differing.interval)) < 0.75


def test_results_display_themselves_and_are_plain_types():
    import json

    found = small_fit()
    result = profile(found, "alpha")
    assert "alpha" in str(result)
    assert "<table" in result._repr_html_()
    assert json.loads(json.dumps(result.to_dict()))["quantity"] == "alpha"
    verdicts = identify(found, resamples=20)
    assert "5 of 5 parameters are identified" in str(verdicts)
    assert json.loads(json.dumps(verdicts.to_dict()))["verdicts"]["alpha"]["standing"] == "identified"


def test_large_tables_are_profiled_on_some_of_their_runs(monkeypatch):
    monkeypatch.setattr("scaling.certainty.profile.LARGE", 120)
    found = fit(runs.Table(isoflop_table(held_out=False, sizes=60)), "chinchilla", objective=SQUARES)
    some = profile(found, "alpha", clusters=np.arange(240))
    assert len(some.fit.residuals) == 120
    assert not some.improved
    assert TRUTH["alpha"] in some.estimate
    monkeypatch.undo()
    every = profile(found, "alpha")
    assert 1.1 < np.ptp(some.interval) / np.ptp(every.interval) < 1.8  # the square root of two


def test_a_table_without_noise_leaves_nothing_open():
    for each in profiles(small_fit(noise=0.0)):
        assert each.below is End.CROSSED
        assert each.interval == pytest.approx((TRUTH[each.quantity.name],) * 2, rel=1e-3)


def test_mistakes_are_said_in_one_line():
    found = small_fit()
    with pytest.raises(ValueError, match="no parameter 'alpa'; did you mean 'alpha'"):
        profile(found, "alpa")
    with pytest.raises(ValueError, match="3 labels for 24 fitted runs"):
        profile(found, "alpha", clusters=np.arange(3))
    nowhere = quantities.Quantity("nowhere", "no value", lambda p: p["E"] * np.nan)
    with pytest.raises(ValueError, match="nowhere has no value at the optimum"):
        profile(found, nowhere)
