"""Every law: a table made from it gives its parameters back; what papers derive from their constants follows."""

import numpy as np
import pandas as pd
import pytest
from tables import isoflop_table

from scaling import laws, runs
from scaling.certainty.bootstrap import bootstrap
from scaling.fitting.fit import Kind, Objective, fit
from scaling.laws import kaplan, schedule

PEAK, WARMUP = 3e-4, 200
SQUARES = Objective(Kind.LEAST_SQUARES)


def sizes(**further):
    """Fifty runs at language-model scale, with further columns drawn from the values given."""
    generator = np.random.default_rng(3)
    frame = {"params": 10 ** generator.uniform(7, 10, 60), "tokens": 10 ** generator.uniform(8.5, 11.5, 60)}
    frame |= {name: generator.choice(values, 60) for name, values in further.items()}
    return pd.DataFrame(frame)


def one_column(name, low, high, rows=40):
    return pd.DataFrame({name: np.geomspace(low, high, rows)})


def repeated():
    frame = sizes(epochs=[1, 1, 2, 4, 10, 30, 100])
    return frame.assign(unique_tokens=frame["tokens"] / frame["epochs"])


def shapes():
    frame = sizes(width=[256, 512, 1024, 2048, 4096], layers=[4, 8, 16, 32, 64])
    return frame.assign(params=12 * frame["layers"] * frame["width"] ** 2 + 5e4 * frame["width"])


def vocabularies():
    frame = sizes(vocab=[4096, 8192, 16384, 32768, 65536])
    width = 64 * np.sqrt(frame["params"] / 1e6)
    return frame.rename(columns={"params": "params_nonembedding"}).assign(params_vocabulary=width * frame["vocab"])


def curves(every=50):
    """Constant, cosine, decay to a tenth, and one step down, 3,000 steps each."""
    step = np.arange(every, 3001, every)
    after = (step - WARMUP) / (3000 - WARMUP)
    shapes = {
        "constant": np.ones(len(step)),
        "cosine": 0.55 + 0.45 * np.cos(np.pi * np.clip(after, 0, 1)),
        "decay": np.where(step > 2000, 0.1 ** ((step - 2000) / 1000), 1.0),
        "step": np.where(step > 1500, 0.3, 1.0),
    }
    rows = [
        pd.DataFrame({"run": name, "step": step, "lr": PEAK * shape})[step >= WARMUP] for name, shape in shapes.items()
    ]
    return pd.concat(rows, ignore_index=True)


def scheduled():
    frame = curves()
    return frame.assign(**schedule.sums(frame, warmup=WARMUP, pieces=8))


def small():
    return isoflop_table(held_out=False, sizes=10)[["params", "tokens", "flops"]]


CHINCHILLA = {"E": 1.6, "A": 1.5 * 2e4**0.4, "B": 1.2 * 1.5e6**0.35, "alpha": 0.4, "beta": 0.35}
BROKEN = {"a": 0.8, "b": 6.0, "c_0": 0.05, "c_1": 0.25, "f_1": 0.3}

KNOWN = {
    "chinchilla": (small, CHINCHILLA),
    "chinchilla-tied": (sizes, {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353}),
    "kaplan-n": (small, {"N_c": 8.8e13, "alpha_N": 0.076}),
    "kaplan-d": (small, {"D_c": 5.4e13, "alpha_D": 0.095}),
    "kaplan-c": (small, {"C_c": 1.4e27, "alpha_C": 0.057}),
    "kaplan-cmin": (lambda: one_column("flops_min", 1e15, 1e20), {"C_c": 2.7e28, "alpha_C": 0.05}),
    "kaplan-nd": (small, {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}),
    "kaplan-ns": (
        lambda: sizes(steps_min=[1e3, 3e3, 1e4, 3e4, 1e5]),
        {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
    ),
    "kaplan-batch": (lambda: one_column("loss", 2.0, 8.0), {"B_star": 2e8, "alpha_B": 0.21}),
    **{f"power-{name}": (small, {"A": 30.0, "alpha": 0.12}) for name in ("params", "tokens", "flops")},
    "floor-params": (small, {"E": 1.7, "A": 90.0, "alpha": 0.3}),
    "floor-tokens": (small, {"E": 1.7, "A": 300.0, "alpha": 0.3}),
    "floor-flops": (small, {"E": 1.7, "A": 1200.0, "alpha": 0.22}),
    "data-constrained": (
        repeated,
        {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.36, "beta": 0.34, "R_N": 5.3, "R_D": 15.4},
    ),
    "overtraining": (sizes, {"E": 1.8, "a": 141.0, "b": 190.0, "eta": 0.121}),
    "downstream-error": (lambda: one_column("loss", 2.2, 4.5), {"epsilon": 0.86, "k": 2.2, "gamma": 0.7}),
    "task-loss": (small, CHINCHILLA),
    "accuracy": (lambda: one_column("task_loss", 0.4, 1.6), {"floor": 0.25, "ceiling": 0.95, "k": 7.0, "L_0": 0.8}),
    "shape": (
        shapes,
        {"E": 1.6, "A": 90.0, "B": 3.0, "C": 800.0, "alpha": 0.8, "beta": 0.6, "gamma": 0.32},
    ),
    "shape-and-size": (
        shapes,
        {
            **{"E": 1.6, "A": 90.0, "B": 3.0, "C": 800.0, "G": 300.0},
            **{"alpha": 0.8, "beta": 0.9, "gamma": 0.32, "delta": 0.3},
        },
    ),
    "routed": (
        lambda: sizes(experts=[1, 2, 4, 8, 32, 128, 512]).rename(columns={"params": "params_active"}),
        {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.5},
    ),
    "fine-grained": (
        lambda: sizes(granularity=[1, 2, 4, 8, 16]),
        {"c": 0.47, "a": 18.1, "b": 30.8, "g": 2.1, "alpha": 0.115, "beta": 0.147, "gamma": 0.58},
    ),
    "training-precision": (
        lambda: sizes(bits_weights=[3, 4, 6, 8, 16], bits_activations=[4, 6, 8, 16], bits_kv=[3, 4, 6, 16]),
        {
            **{"E": 2.76, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.4965},
            **{"gamma_w": 2.67, "gamma_a": 2.21, "gamma_kv": 0.96},
        },
    ),
    "training-precision-shifted": (
        lambda: sizes(bits_weights=[3, 4, 6, 8, 16], bits_activations=[4, 5, 6, 8, 16], bits_kv=[3, 4, 5, 6, 16]),
        {
            **{"E": 2.76, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.4965},
            **{"gamma_w": 2.67, "gamma_a": 2.21, "gamma_kv": 0.96, "n_w": 0.3, "n_a": 1.4, "n_kv": 2.4},
        },
    ),
    "post-training-precision": (
        lambda: sizes(bits_post=[3, 4, 5, 6]),
        {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
    ),
    "vocabulary": (
        vocabularies,
        {"E": 5.53, "A_1": 873.0, "A_2": 2071.0, "B": 2.2e4, "alpha_1": 0.447, "alpha_2": 0.671, "beta": 0.447},
    ),
    "deepseek-rate": (small, {"c": 0.3118, "gamma": 0.125}),
    "deepseek-batch": (small, {"c": 0.292, "gamma": 0.3271}),
    "step-rate": (sizes, {"c": 1.79, "gamma_N": 0.713, "gamma_D": 0.307}),
    "step-batch": (sizes, {"c": 0.58, "gamma": 0.571}),
    "annealing": (scheduled, {"L_0": 2.6, "A": 0.5, "C": 0.6, "alpha": 0.5}),
    "multi-power": (
        scheduled,
        {"L_0": 2.65, "A": 0.6, "B": 438.0, "C": 2.13, "alpha": 0.453, "beta": 0.598, "gamma": 0.655},
    ),
    "broken-params": (lambda: one_column("params", 1e5, 1e11, 60), BROKEN | {"d_1": 1e8}),
    "broken-tokens": (lambda: one_column("tokens", 1e6, 1e12, 60), BROKEN | {"d_1": 1e9}),
    "broken-flops": (lambda: one_column("flops", 1e15, 1e23, 60), BROKEN | {"d_1": 1e19}),
}
LOOSE = {"vocabulary": 1e-3, "shape-and-size": 1e-3}


def table_of(name, noise=0.0, seed=0):
    make, truth = KNOWN[name]
    law, frame = laws.get(name), make()
    shocks = np.random.default_rng(seed).standard_normal(len(frame))
    return runs.Table(frame.assign(**{law.target: law(frame, truth) * np.exp(noise * shocks)}))


def test_every_law_has_a_known_table():
    assert set(KNOWN) == set(laws.LAWS)


@pytest.mark.parametrize("law", laws.LAWS.values(), ids=laws.LAWS)
def test_a_law_says_what_it_is(law):
    assert "arXiv:" in law.source
    assert law.text
    assert set(law.columns) | {law.target} <= set(runs.SCHEMA)
    assert all(parameter.meaning for parameter in law.parameters)
    assert np.prod([1 if parameter.linear else len(parameter.starts) for parameter in law.parameters]) < 500


HEAVY = {
    *("vocabulary", "training-precision", "training-precision-shifted", "shape-and-size", "fine-grained"),
    *("broken-params", "broken-flops", "multi-power"),
}
"""Laws that take seconds to compile; with the others, every family is fitted by default."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in sorted(KNOWN)]
)
def test_exact_tables_give_the_parameters_back(name):
    found = fit(table_of(name), name, objective=SQUARES)
    assert found.parameters == pytest.approx(KNOWN[name][1], rel=LOOSE.get(name, 1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_noisy_tables_hold_the_truth_within_the_interval(name):
    """99.9 % intervals at a thousandth of noise; of 37 laws with 162 parameters, none should miss."""
    found = fit(table_of(name, 0.001), name, objective=SQUARES)
    boot = bootstrap(found, resamples=300, level=0.999)
    missed = {each: boot.interval(each) for each, value in KNOWN[name][1].items() if value not in boot.interval(each)}
    assert not missed
    assert found.sigma == pytest.approx(0.001, rel=0.35)


def test_another_law_does_not_give_the_parameters_of_the_right_one():
    """Repeated data fitted as if fresh: the exponent of tokens is off, where the right law has it exact."""
    table, truth = table_of("data-constrained"), KNOWN["data-constrained"][1]
    found = fit(table, "chinchilla", objective=SQUARES)
    assert abs(found.parameters["beta"] / truth["beta"] - 1) > 0.1
    assert found.sigma > 0.01


def test_a_parameter_can_be_held():
    law = laws.CHINCHILLA.fix(alpha=0.4, beta=0.35)
    assert law.names == ("E", "A", "B")
    assert all(parameter.linear for parameter in law.parameters)
    found = fit(table_of("chinchilla"), law, objective=SQUARES)
    assert found.parameters == pytest.approx({name: CHINCHILLA[name] for name in "EAB"}, rel=1e-6)
    assert not any(parameter.linear for parameter in laws.CHINCHILLA.fix(E=1.6).parameters)
    with pytest.raises(ValueError, match="no parameter 'gamma'"):
        law.fix(gamma=1.0)
    with pytest.raises(ValueError, match="at least one must be left"):
        law.fix(E=1.0, A=1.0, B=1.0)


def test_over_training_is_the_tied_chinchilla_law():
    frame, eta, a, b = sizes(), 0.12, 140.0, 190.0
    one = laws.get("overtraining")(frame, {"E": 1.8, "a": a, "b": b, "eta": eta})
    tied = {"E": 1.8, "A": a * 6**-eta, "B": b * 6**-eta, "alpha": 2 * eta}
    np.testing.assert_allclose(one, laws.get("chinchilla-tied")(frame, tied), rtol=1e-12)


def test_data_without_repetition_follow_chinchilla():
    frame = sizes().assign(unique_tokens=lambda t: t["tokens"])
    small = frame[frame["params"] < 0.004 * frame["tokens"]]  # no excess parameters
    truth = KNOWN["data-constrained"][1]
    plain = {name: truth[name] for name in laws.CHINCHILLA.names}
    np.testing.assert_allclose(laws.get("data-constrained")(small, truth), laws.CHINCHILLA(small, plain), rtol=1e-12)
    assert (laws.get("data-constrained")(frame, truth) >= laws.CHINCHILLA(frame, plain) - 1e-12).all()


def test_a_broken_law_is_the_papers_product():
    """Caballero et al., figure 4 right: the constants of their simulation of four-digit addition."""
    a, b, c_0, c_1, d_1, f_1 = 0.41388453, 2.27727229, 0.05507735, 5.66290382, 612.58361729, 0.05919304
    x = np.geomspace(10, 2000, 50)
    expected = a + b * x**-c_0 * (1 + (x / d_1) ** (1 / f_1)) ** (-c_1 * f_1)
    named = {"a": a, "b": b, "c_0": c_0, "c_1": c_1, "d_1": d_1, "f_1": f_1}
    np.testing.assert_allclose(laws.get("broken-tokens")({"tokens": x}, named), expected, rtol=1e-12)
    far = laws.get("broken-tokens")({"tokens": np.array([1e300])}, named)  # the product overflows, the loss does not
    assert far == pytest.approx(a)


def test_batches_far_from_critical_cost_steps_or_tokens_only():
    given = {"steps": np.full(3, 1e4), "batch_tokens": np.array([1e3, 1e6, 1e9])}
    given["flops"] = 6e8 * given["steps"] * given["batch_tokens"]
    found = kaplan.at_any_batch(**given, critical_batch=np.full(3, 1e6))
    np.testing.assert_allclose(found["steps_min"], [1e4 / 1001, 5e3, 1e4 / 1.001])
    np.testing.assert_allclose(found["flops_min"] / given["flops"], [1 / 1.001, 0.5, 1 / 1001])
    # At the critical batch twice the fewest steps and twice the fewest tokens, as Kaplan et al. define it (eq. 5.1).
    assert found["steps_min"][1] * 2 == given["steps"][1]


def by_hand(rate, parameters, decay=0.999):
    """Tissue's areas and the Multi-Power law at the last step of a schedule, term by term."""
    area = sum(
        (rate[k - 1] - rate[k]) * decay ** (i - k)
        for i in range(WARMUP + 1, len(rate))
        for k in range(WARMUP + 1, i + 1)
    )
    p, lost = parameters, 0.0
    for k in range(WARMUP + 1, len(rate)):
        seen = p["C"] * rate[k] ** -p["gamma"] * sum(rate[k:])
        lost += (rate[k - 1] - rate[k]) * (1 - (1 + seen) ** -p["beta"])
    return sum(rate), area, p["L_0"] + p["A"] * sum(rate) ** -p["alpha"] - p["B"] * lost


@pytest.mark.parametrize(("pieces", "rel"), [(700, 1e-6), (16, 5e-4)])
def test_sums_over_a_schedule_are_those_of_the_papers(pieces, rel):
    step = np.arange(1, 701)
    ramp = np.minimum(step / WARMUP, 1.0)
    decay = np.where(step > 400, 1 - 0.9 * (step - 400) / 300, 1.0)
    curve = pd.DataFrame({"run": "one", "step": step, "lr": PEAK * decay})
    law, truth = laws.get("multi-power"), KNOWN["multi-power"][1]
    columns = schedule.sums(curve, warmup=WARMUP, pieces=pieces)
    predicted = law({name: columns[name] for name in law.columns}, truth)
    total, area, loss = by_hand(list(PEAK * ramp * decay), truth)
    assert columns["lr_sum"][-1] == pytest.approx(total)
    assert columns["lr_annealing"][-1] == pytest.approx(area)
    assert predicted[-1] == pytest.approx(loss, rel=rel)
    assert np.all(np.diff(predicted) < 0)
    constant = truth["L_0"] + truth["A"] * total ** -truth["alpha"]
    assert loss < constant - 0.01  # the drops matter, so the agreement says something


def test_sums_keep_the_order_of_rows_and_tell_runs_apart():
    frame = curves()
    shuffled = frame.sample(frac=1.0, random_state=1)
    for name, values in schedule.sums(shuffled, warmup=WARMUP, pieces=4).items():
        expected = np.stack(schedule.sums(frame, warmup=WARMUP, pieces=4)[name])[shuffled.index]
        np.testing.assert_allclose(np.stack(values), expected)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.drop(columns="lr"), "need a column 'lr'"),
        (lambda t: t.assign(run="same"), "each occur once"),
        (lambda t: t.assign(step=t["step"] - 200), "above zero"),
    ],
    ids=["no rate", "a step twice", "step zero"],
)
def test_curves_that_cannot_be_summed_are_refused(spoil, said):
    with pytest.raises(ValueError, match=said):
        schedule.sums(spoil(curves()), warmup=WARMUP)


def test_a_law_of_tokens_alone_asks_for_no_size():
    frame = one_column("tokens", 1e9, 1e12)
    frame["batch_tokens"] = 0.58 * frame["tokens"] ** 0.571
    assert fit(frame, "step-batch").parameters == pytest.approx({"c": 0.58, "gamma": 0.571}, rel=1e-6)
