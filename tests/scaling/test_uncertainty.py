"""Draws and intervals against closed forms, against each other, and on tables whose noise is known."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from tables import TRUTH, isoflop_table, published

from scaling import runs
from scaling.certainty import bootstrap as uncertainty
from scaling.certainty.bootstrap import Multiplier, Resampling, bootstrap, laplace
from scaling.certainty.covariance import Noise, covariance
from scaling.certainty.intervals import Method, intervals
from scaling.certainty.replicates import replicates
from scaling.fitting import quantities, solver
from scaling.fitting.differences import sensitivity
from scaling.fitting.fit import Kind, Objective, fit
from scaling.fitting.powerlaw import Compute
from scaling.laws import CHINCHILLA

SQUARES = Objective(Kind.LEAST_SQUARES)


def small_fit(seed=0, **more):
    return fit(runs.Table(isoflop_table(seed=seed, held_out=False, **more)), "chinchilla")


def straight_line(noise, *, groups=None):
    """log L = log A - alpha log C with given errors, fitted by least squares."""
    flops = np.geomspace(1e9, 1e13, len(noise))
    frame = pd.DataFrame({"params": flops**0.5, "tokens": flops**0.5, "flops": flops})
    frame["loss"] = 40 * flops**-0.1 * np.exp(noise)
    return fit(runs.Table(frame), "power-flops", objective=SQUARES), np.log(flops), np.log(frame["loss"])


def width(estimate):
    return estimate.high - estimate.low


def test_derivatives_agree_with_those_of_the_law_written_out():
    found = small_fit()
    logs, jacobian = sensitivity(CHINCHILLA, found.columns, found.theta[None])
    p, c = found.parameters, found.columns
    one, two = p["A"] * c["params"] ** -p["alpha"], p["B"] * c["tokens"] ** -p["beta"]
    exact = np.stack([np.ones_like(one), one, two, -one * np.log(c["params"]), -two * np.log(c["tokens"])], axis=1)
    predicted = found.predict(c)
    np.testing.assert_allclose(np.exp(logs[0]), predicted, rtol=1e-12)
    np.testing.assert_allclose(jacobian[0], exact / predicted[:, None], rtol=1e-7)


def test_laplace_is_ordinary_least_squares_on_a_straight_line():
    found, x, y = straight_line(0.02 * np.random.default_rng(1).standard_normal(14))
    line = scipy.stats.linregress(x, y)
    reach = scipy.stats.t.ppf(0.975, 12) * line.stderr
    exact = laplace(found).interval("alpha")
    assert [exact.low, exact.high] == pytest.approx([-line.slope - reach, -line.slope + reach], rel=1e-6)
    # What follows from draws agrees, up to the draws' own error.
    drawn = laplace(found, draws=40_000).quantity(quantities.Quantity("same", "alpha again", lambda p: p["alpha"]))
    assert width(drawn) == pytest.approx(width(exact), rel=0.05)


def test_weights_are_those_of_weighted_least_squares():
    """Runs measured with errors of 1 % and 4 %, weighed by their inverse squares; against the textbook formula."""
    generator = np.random.default_rng(4)
    error = np.where(np.arange(20) % 2, 0.01, 0.04)
    flops = np.geomspace(1e9, 1e13, 20)
    loss = 40 * flops**-0.1 * np.exp(error * generator.standard_normal(20))
    frame = pd.DataFrame({"params": flops**0.5, "tokens": flops**0.5, "flops": flops, "loss": loss})
    frame["loss_se"] = error * loss
    found = fit(runs.Table(frame), "power-flops", objective=Objective(Kind.LEAST_SQUARES, weights="loss_se"))
    design, weights = np.stack([np.ones(20), -np.log(flops)], axis=1), 1 / error**2
    gauss = (design * weights[:, None]).T @ design
    best = np.linalg.solve(gauss, design.T @ (weights * np.log(loss)))
    left = np.log(loss) - design @ best
    reach = scipy.stats.t.ppf(0.975, 18) * np.sqrt((weights @ left**2) / 18 * np.linalg.inv(gauss)[1, 1])
    known = [best[1] - reach, best[1] + reach]
    laid = intervals(found, method=Method.LAPLACE)["alpha"]
    assert [laid.value, laid.low, laid.high] == pytest.approx([best[1], *known], rel=1e-6)
    profiled = intervals(found, method=Method.PROFILE)["alpha"]
    assert [profiled.low, profiled.high] == pytest.approx(known, rel=1e-3)
    for resampling in (Resampling.RESIDUAL, Resampling.WILD):
        boot = bootstrap(found, resampling=resampling, resamples=600)
        assert width(boot.interval("alpha")) == pytest.approx(2 * reach, rel=0.25)
    plain = fit(runs.Table(frame), "power-flops", objective=SQUARES)
    assert width(laplace(plain).interval("alpha")) > 1.3 * 2 * reach


@pytest.mark.parametrize("delta", [1e-3, pytest.param(7e-3, marks=pytest.mark.slow), 1.0])
def test_the_covariance_of_a_robust_fit_is_that_of_repeated_tables(delta):
    """The standard error claimed, typical of eight tables, against the spread of optima over 300 more."""
    frame = isoflop_table(noise=0.0, held_out=False, sizes=30)
    tables = [runs.Table(isoflop_table(seed=seed, held_out=False, sizes=30)) for seed in range(1, 9)]
    fits = [fit(table, "chinchilla", objective=Objective(delta=delta)) for table in tables]
    noise = 0.007 * np.random.default_rng(2).standard_normal((300, len(frame)))
    theta = solver.minimise(
        CHINCHILLA,
        fits[0].columns,
        theta=np.repeat(fits[0].theta[None], 300, axis=0),
        target=np.log(frame["loss"].to_numpy()) + noise,
        weights=np.ones((1, len(frame))),
        delta=delta,
    ).theta
    for assumed in Noise:
        claimed = np.median([np.sqrt(np.diag(covariance(each, noise=assumed).matrix)) for each in fits], axis=0)
        np.testing.assert_allclose(claimed, theta.std(axis=0), rtol=0.25)


def test_noise_that_differs_is_seen_by_what_does_not_assume_it_equal():
    """Errors four times as large at both ends of the line: slope intervals must widen."""
    generator = np.random.default_rng(5)
    size = np.where(np.abs(np.linspace(-1, 1, 200)) > 0.7, 0.04, 0.01)
    found, x, _ = straight_line(size * generator.standard_normal(200))
    centred = x - x.mean()
    exact = np.sqrt(np.sum((centred * size) ** 2)) / np.sum(centred**2)
    true = 2 * scipy.stats.norm.ppf(0.975) * exact
    differing, equal = (
        width(laplace(found, noise=noise).interval("alpha")) for noise in (Noise.DIFFERING, Noise.EQUAL)
    )
    pairs, wild, residual = (
        width(bootstrap(found, resampling=each, resamples=600).interval("alpha"))
        for each in (Resampling.PAIRS, Resampling.WILD, Resampling.RESIDUAL)
    )
    for honest in (differing, pairs, wild):
        assert honest == pytest.approx(true, rel=0.2)
    for sure in (equal, residual):
        assert sure < 0.85 * true


@pytest.mark.parametrize("resampling", [Resampling.PAIRS, Resampling.WILD])
def test_runs_that_share_noise_are_fewer_than_they_look(resampling):
    """40 trainings of 6 checkpoints: the error of each training is common to its checkpoints."""
    generator = np.random.default_rng(8)
    labels = np.repeat(np.arange(40), 6)
    shared = 0.03 * generator.choice([-1.0, 1.0], 40)[labels]
    found, x, _ = straight_line(shared + 0.001 * generator.standard_normal(240))
    centred = x - x.mean()
    sums = np.array([centred[labels == each].sum() for each in range(40)])
    true = 2 * scipy.stats.norm.ppf(0.975) * 0.03 * np.sqrt(np.sum(sums**2)) / np.sum(centred**2)
    boot = bootstrap(found, resampling=resampling, resamples=600, clusters=labels)
    assert "40" in boot.method
    assert width(boot.interval("alpha")) == pytest.approx(true, rel=0.25)
    assert width(bootstrap(found, resampling=resampling, resamples=600).interval("alpha")) < 0.6 * true
    assert width(laplace(found, clusters=labels).interval("alpha")) == pytest.approx(true, rel=0.25)
    # Labels of any kind, and clusters of one run, are as without.
    named = np.array([f"run-{each}" for each in range(240)])
    alone = width(laplace(found, clusters=named).interval("alpha"))
    assert alone == pytest.approx(width(laplace(found, noise=Noise.DIFFERING).interval("alpha")), rel=0.02)


def test_multipliers_have_their_moments():
    generator = np.random.default_rng(0)
    for multiplier, third in ((Multiplier.RADEMACHER, 0.0), (Multiplier.MAMMEN, 1.0)):
        drawn = multiplier.draw(generator, (400_000,))
        assert [np.mean(drawn), np.mean(drawn**2), np.mean(drawn**3)] == pytest.approx([0.0, 1.0, third], abs=0.02)
        assert len(np.unique(drawn)) == 2


@pytest.mark.parametrize("resampling", list(Resampling))
def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(resampling, monkeypatch):
    found = small_fit()
    whole = bootstrap(found, resampling=resampling, resamples=50).samples
    monkeypatch.setattr(uncertainty, "_CELLS", 24 * 7)
    np.testing.assert_allclose(bootstrap(found, resampling=resampling, resamples=50).samples, whole, rtol=1e-6)


@pytest.mark.parametrize("resampling", list(Resampling))
def test_memory_does_not_grow_with_resamples(resampling, monkeypatch):
    """240 rows x 50,000 resamples would be 96 MB of losses, and more in passing."""
    found = small_fit(sizes=60)
    largest = []

    def instant(law, columns, *, theta, target, weights, delta):
        largest.append(max(target.size, weights.size))
        return solver.Solution(theta, np.ones(len(theta)), np.zeros(len(theta)), None, None, None)

    monkeypatch.setattr(solver, "minimise", instant)
    tracemalloc.start()
    boot = bootstrap(found, resampling=resampling, resamples=50_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(boot.samples) == 50_000
    assert max(largest) <= uncertainty._CELLS
    assert peak < 100e6


def test_intervals_of_positive_quantities_stay_positive():
    boot = bootstrap(small_fit(), resamples=100)
    ratio = boot.quantity(quantities.tokens_per_param(CHINCHILLA, Compute(10.0, 0.974, 0.0), 1e16))
    assert 0 < ratio.low < ratio.value < ratio.high
    for name in ("A", "B"):
        assert boot.interval(name).low > 0
    assert boot.quantity(quantities.parameter(CHINCHILLA, "A")) == boot.interval("A")


def replicated(noise=0.01, *, miss=0.0):
    """Ten settings, four seeds each; `miss` is what the law does not know of a setting."""
    generator = np.random.default_rng(11)
    frame = isoflop_table(held_out=False, sizes=5, noise=0.0).iloc[:10]
    frame = pd.concat([frame.assign(seed=seed) for seed in range(4)], ignore_index=True).drop(columns="run")
    setting = miss * generator.standard_normal(10)
    return frame.assign(loss=frame["loss"] * np.exp(np.tile(setting, 4) + noise * generator.standard_normal(40)))


def test_replicates_know_the_noise_and_the_f_test_what_the_law_misses():
    clean, missed = replicated(), replicated(miss=0.03)
    for frame in (clean, missed):
        found = replicates(frame)
        assert (found.groups, found.rows, found.freedom) == (10, 40, 30)
        within = np.log(frame["loss"]).groupby(frame["params"].rank(method="dense")).var(ddof=1)
        assert found.sigma == pytest.approx(np.sqrt(within.mean()))
        assert 0.01 in found.interval()
        reach = [found.sigma * np.sqrt(30 / scipy.stats.chi2.ppf(q, 30)) for q in (0.975, 0.025)]
        assert [found.interval().low, found.interval().high] == pytest.approx(reach)
    line = [fit(runs.Table(frame), "chinchilla", objective=SQUARES) for frame in (clean, missed)]
    sound, lacking = (replicates(frame).lack_of_fit(each) for frame, each in zip((clean, missed), line, strict=True))
    assert sound.probability > 0.05
    assert "no lack of fit" in str(sound)
    assert lacking.probability < 1e-6
    assert lacking.beyond == pytest.approx(0.03, rel=0.5)
    assert "the law misses" in str(lacking)
    # A new run has the noise and the miss.
    at = {"params": 1e5, "tokens": 1e7}
    boot = bootstrap(line[1], resamples=100)
    assert width(boot.new_run(at, noise=replicates(missed))) >= width(boot.new_run(at))
    louder = replicates(replicated(noise=0.2))
    assert width(boot.new_run(at, noise=louder)) > 2 * width(boot.new_run(at))


def test_replicates_are_equal_in_everything_but_their_seed():
    frame = replicated()
    assert replicates(frame.assign(learning_rate=np.arange(40) * 1e-4)) is None
    assert replicates(frame.assign(corpus=[f"c{i}" for i in range(40)])) is None
    assert replicates(frame.assign(accuracy=np.linspace(0, 1, 40))).rows == 40
    assert replicates(frame.assign(experts=np.arange(40)), settings=("experts",)) is None
    assert replicates(frame.assign(seed=0)) is None
    with pytest.raises(ValueError, match="without a column 'seed' or 'rerun'"):
        replicates(frame.drop(columns="seed"))
    with pytest.raises(ValueError, match="no column 'exprets'; did you mean 'experts'"):
        replicates(frame.assign(experts=1), settings=("exprets",))


def test_reruns_of_the_olmo_ladder_leave_lack_of_fit():
    columns = {"tokens": "throughput/total_tokens", "loss": "eval/c4_en-validation/CrossEntropyLoss"}
    table = runs.load(published("olmo_ladder_final.csv"), columns=columns)
    noise = replicates(table.frame)
    assert (noise.groups, noise.rows) == (5, 10)
    assert noise.sigma < 0.001
    assert noise.lack_of_fit(fit(table, "chinchilla")).probability < 1e-4


def test_checkpoints_of_one_training_are_not_independent():
    columns = {"params": "params_active_precise", "loss": "final_loss"}
    table = runs.load(published("gemstones_hot.jsonl"), columns=columns)
    found = fit(table, "chinchilla")
    whole = laplace(found, clusters=table.frame["run_name"])
    assert whole.covariance.freedom == 21
    assert width(whole.interval("alpha")) > 1.5 * width(laplace(found).interval("alpha"))


def test_chinchilla_points():
    names = {"params": "Model Size", "flops": "Training FLOP"}
    table = runs.load(published("chinchilla_points.csv"), columns=names).frame.sort_values("loss").iloc[:240]
    found = fit(runs.Table(table), "chinchilla")
    ratio = quantities.tokens_per_param(CHINCHILLA, Compute(6.0, 1.0, 0.0), 5.76e23)
    wanted = ("alpha", "beta", "E", ratio)
    known = {"alpha": (0.317, 0.371), "beta": (0.332, 0.415), "E": (1.769, 1.872), ratio.name: (7.7, 36.6)}
    default = intervals(found, wanted)
    assert "whole runs" in default.method
    for name, ends in known.items():
        assert [default[name].low, default[name].high] == pytest.approx(ends, rel=0.05)
    for method in (Method.LAPLACE, Method.PROFILE):  # noise that differs by run, as pairs do: nearly as wide
        other = intervals(found, wanted, method=method)
        for name in known:
            share = np.log(other[name].high / other[name].low) / np.log(default[name].high / default[name].low)
            assert 0.75 < share < 1.5


def test_the_default_is_a_profile_for_few_runs_and_pairs_for_many():
    few, many = intervals(small_fit()), intervals(small_fit(sizes=25), resamples=50)
    assert few.method.startswith("profile likelihood")
    assert many.method.startswith("bootstrap of whole runs")
    assert few.estimates.keys() == TRUTH.keys()
    for each in few.estimates.values():
        assert each.low < each.value < each.high
    labels = np.repeat(np.arange(8), 3)
    clustered = intervals(small_fit(), clusters=labels)
    assert clustered.method.startswith("profile likelihood")
    assert "8 whole clusters" in bootstrap(small_fit(), clusters=labels, resamples=20).method
    for shown in (few, many, clustered):
        assert "alpha" in str(shown)
        assert "<table" in shown._repr_html_()
        found = json.loads(json.dumps(shown.to_dict()))
        assert set(found["alpha"]) == {"value", "low", "high", "method"}


def test_mistakes_are_said_in_one_line():
    found = small_fit()
    with pytest.raises(ValueError, match="at least 20"):
        bootstrap(found, resamples=5)
    with pytest.raises(ValueError, match="residuals of clustered runs cannot be exchanged"):
        bootstrap(found, resampling=Resampling.RESIDUAL, clusters=np.arange(24))
    with pytest.raises(ValueError, match="5 labels for 24 fitted runs"):
        bootstrap(found, clusters=np.arange(5))
    with pytest.raises(ValueError, match="every run has the label 'a'"):
        laplace(found, clusters=np.array(["a"] * 24))
    with pytest.raises(ValueError, match="1 of 24 runs have no label"):
        laplace(found, clusters=[None, *"abcdefghijklmnopqrstuvw"])
    with pytest.raises(ValueError, match="no parameter 'alhpa'; did you mean 'alpha'"):
        intervals(found, ("alhpa",))
    with pytest.raises(ValueError, match="no parameter 'alhpa'"):
        bootstrap(found, resamples=20).interval("alhpa")
