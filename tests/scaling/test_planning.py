"""Plans against optima found by search, next runs against simulation, and questions no table can answer."""

import json

import numpy as np
import pandas as pd
import pytest
from tables import HELD_OUT, TRUTH, flops_per_token, isoflop_table, loss, published

from scaling import laws, runs
from scaling.certainty.bootstrap import bootstrap
from scaling.decisions.constraints import REPEATS, Constraints
from scaling.decisions.design import candidate_grid, choose
from scaling.decisions.plan import plan
from scaling.fitting import quantities, solver
from scaling.fitting.fit import Objective, fit
from scaling.fitting.powerlaw import compute

TABLE = isoflop_table(held_out=False, noise=1e-6, sizes=8)
GRID = np.geomspace(1e3, 1e7, 200_001)


def planned(**more):
    return plan(TABLE, **{"flops": HELD_OUT, "resamples": 40} | more)


def searched(tokens):
    """The best size of a fine grid, given the tokens each size may see."""
    worth = np.where(tokens > 0, loss(GRID, np.maximum(tokens, 1e-9)), np.inf)
    i = int(np.argmin(worth))
    return GRID[i], worth[i]


def test_the_free_optimum_is_the_one_a_search_finds():
    found = planned(flops=[HELD_OUT, 1e12]).allocations
    assert [each.flops for each in found] == [1e12, HELD_OUT]
    for each in found:
        params, lowest = searched(each.flops / flops_per_token(GRID))
        assert each.params.value == pytest.approx(params, rel=5e-3)
        assert each.loss.value == pytest.approx(lowest, rel=1e-4)
        assert each.tokens_per_param.value == pytest.approx(each.tokens.value / each.params.value)


@pytest.mark.parametrize("law", ["chinchilla", "data-constrained"])
@pytest.mark.slow
def test_limited_data_is_repeated_at_a_discount(law):
    """With a tenth of the tokens: as searched with the published discount, or by a law that was fitted with repeats."""
    unique = 1e6
    spent = HELD_OUT / flops_per_token(GRID)
    fresh = np.minimum(spent, unique)
    if law == "chinchilla":
        found = planned(constraints=Constraints(unique_tokens=unique))
        params, lowest = searched(fresh + fresh * REPEATS * (1 - np.exp(-(spent / fresh - 1) / REPEATS)))
        assert "discounted as Muennighoff" in " ".join(found.notes)
    else:
        truth = TRUTH | {"R_N": 1e3, "R_D": 4.0}
        form = laws.get(law)
        frame = runs.check(TABLE).frame
        rows = pd.concat([frame.assign(unique_tokens=frame["tokens"] / epochs) for epochs in (1, 3, 10, 30)])
        rows["loss"] = form(rows, truth)
        found = plan(rows, flops=HELD_OUT, law=law, constraints=Constraints(unique_tokens=unique), resamples=20)
        worth = form({"params": GRID, "tokens": spent, "unique_tokens": fresh}, truth)
        params, lowest = GRID[np.argmin(worth)], worth.min()
        assert "the law's own fit" in " ".join(found.notes)
    each = found.allocations[0]
    assert each.params.value == pytest.approx(params, rel=0.02)
    assert each.loss.value == pytest.approx(lowest, rel=1e-3)
    assert each.epochs == pytest.approx(each.tokens.value / unique)
    assert each.epochs > 1


def test_inference_makes_models_smaller():
    served = 3e7
    each = planned(constraints=Constraints(served_tokens=served)).allocations[0]
    params, lowest = searched(HELD_OUT / flops_per_token(GRID) - served / 3)
    assert each.params.value == pytest.approx(params, rel=5e-3)
    assert each.loss.value == pytest.approx(lowest, rel=1e-4)
    assert each.params.value < planned().allocations[0].params.value
    paid = flops_per_token(each.params.value) * (each.tokens.value + served / 3)
    assert paid == pytest.approx(HELD_OUT, rel=1e-3)
    assert each.training_flops < HELD_OUT


def test_memory_and_fixed_sizes_bind():
    each = planned(constraints=Constraints(memory=2 * 3e4)).allocations[0]
    assert each.params.value == pytest.approx(3e4, rel=1e-6)
    roomy = planned(constraints=Constraints(memory=2e9)).allocations[0]
    assert roomy.params.value == pytest.approx(planned().allocations[0].params.value, rel=1e-4)
    fixed = planned(constraints=Constraints(params=5e4)).allocations[0]
    assert fixed.tokens.value == pytest.approx(HELD_OUT / flops_per_token(5e4), rel=1e-3)
    assert fixed.near is None
    given = planned(constraints=Constraints(tokens=4e6)).allocations[0]
    assert flops_per_token(given.params.value) * 4e6 == pytest.approx(HELD_OUT, rel=1e-3)


def test_deviating_costs_what_the_law_says():
    found = planned()
    each = found.allocations[0]
    middle = next(other for other in each.deviations if other.factor == 1)
    assert middle.penalty.value == pytest.approx(0, abs=1e-9)
    half = next(other for other in each.deviations if other.factor == 0.5)
    tokens = HELD_OUT / flops_per_token(half.params)
    assert half.penalty.value == pytest.approx(loss(half.params, tokens) - each.loss.value, rel=1e-2)
    assert loss(half.params, half.tokens_needed) == pytest.approx(each.loss.value, rel=1e-4)
    paid = flops_per_token(half.params) * half.tokens_needed / HELD_OUT
    assert half.extra.value == pytest.approx(paid - 1, rel=2e-2)
    for size in each.near:
        needed = found.iso_loss(each.loss.value, np.array([size]))
        assert found.setting.cost.flops(size, needed[0]) / HELD_OUT == pytest.approx(1.1, abs=0.01)
    tiny = found.iso_loss(TRUTH["E"] + 0.01, np.array([1e3]))
    assert np.isinf(tiny[0])


@pytest.mark.slow
def test_a_plan_far_beyond_the_table_or_on_a_fit_that_failed_says_so():
    far = planned(flops=1e16)
    assert "1.25e+04 times beyond the largest run" in " ".join(far.warnings)
    assert not any("times beyond" in warning for warning in planned(flops=1e11).warnings)
    frame = runs.check(TABLE).frame.assign(loss=lambda t: 2.5 * (t["params"] / 1e4) ** 0.05)
    try:
        said = " ".join(plan(frame, flops=1e12, resamples=40).warnings)
    except ValueError as error:
        said = str(error)
    assert "certif" in said or "optimum" in said or "no lowest loss" in said


@pytest.mark.parametrize("target", ["params", "loss", "alpha"])
@pytest.mark.slow
def test_next_runs_shrink_the_interval_as_predicted_and_more_than_other_runs(target):
    """Tables are simulated from the truth with and without the chosen runs, and refitted."""
    noise, simulated = 0.004, 600
    frame = runs.check(isoflop_table(held_out=False, sizes=8, noise=noise)).frame
    sizes = {name: frame[name].to_numpy() for name in ("params", "tokens", "flops")}
    cost, law = compute(*sizes.values()), laws.CHINCHILLA
    boot = bootstrap(fit(runs.Table(frame), law, objective=Objective(delta=0.01)), resamples=400)
    quantity = {
        "params": quantities.optimal_params(law, cost, HELD_OUT),
        "loss": quantities.optimal_loss(law, cost, HELD_OUT),
        "alpha": quantities.parameter(law, "alpha"),
    }[target]
    offered = candidate_grid(sizes, cost, 1e12)
    chosen = choose(boot, offered, quantity, runs=4, budget=1e12)
    assert 1 <= len(chosen.chosen) <= 4
    assert chosen.flops <= 1e12 * (1 + 1e-9)
    assert all(one.left >= other.left - 1e-9 for one, other in zip(chosen.chosen, chosen.chosen[1:], strict=False))

    shocks = np.random.default_rng(1).standard_normal((simulated, len(frame) + 4))
    start = solver.encode(law, np.array([TRUTH[name] for name in law.names]))

    def width(rows):
        columns = {name: np.concatenate([sizes[name], [row[name] for row in rows]]) for name in ("params", "tokens")}
        drawn = np.log(law(columns, TRUTH)) + noise * shocks[:, : len(columns["params"])]
        solution = solver.minimise(
            law, columns, theta=np.repeat(start[None], simulated, axis=0), target=drawn, weights=np.ones_like(drawn),
            delta=0.01,
        )  # fmt: skip
        values = quantity(dict(zip(law.names, solver.decode(law, solution.theta).T, strict=True)))
        values = np.log(values) if quantity.positive else values
        return np.diff(np.quantile(values, [0.05, 0.95]))[0]

    now = width([])
    left = width([vars(each) for each in chosen.chosen]) / now
    assert left == pytest.approx(chosen.chosen[-1].left, abs=0.09)
    generator, others = np.random.default_rng(2), []
    for _ in range(3):
        drawn, spent = [], 0.0
        while len(drawn) < 4 and (within := offered[offered["flops"] <= 1e12 - spent]).size:
            row = within.iloc[generator.integers(len(within))]
            drawn.append(row)
            spent += row["flops"]
        others.append(width(drawn) / now)
    assert left < min(others)


def test_next_runs_from_candidates_of_ones_own():
    offered = pd.DataFrame({"params": [1e4, 1e5, 1e6], "tokens": [1e6, 1e6, 1e9]})
    found = planned(next_runs=2, budget=3e12, candidates=offered, target="all").next_runs
    assert {each.params for each in found.chosen} <= {1e4, 1e5}
    assert found.before is None
    with pytest.raises(ValueError, match="no candidate costs 1e\\+03 FLOPs or less; the cheapest costs"):
        planned(next_runs=2, budget=1e3, candidates=offered)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"law": "kaplan-c"}, "reads flops, so it cannot split a budget"),
        ({"flops": -1.0}, "a compute budget is a positive number"),
        ({"next_runs": 3}, "say what they may cost together"),
        ({"next_runs": 3, "budget": 1e12, "target": "los"}, "did you mean 'loss'"),
        ({"constraints": Constraints(served_tokens=1e15)}, "do not pay for"),
        ({"at": {"width": 64.0}}, "has no column 'width' to fix"),
    ],
)
def test_mistakes(more, said):
    with pytest.raises(ValueError, match=said):
        planned(**more)


def test_contradictory_constraints():
    with pytest.raises(ValueError, match="cannot both be fixed"):
        Constraints(params=1e4, tokens=1e6)
    with pytest.raises(ValueError, match="do not fit"):
        Constraints(params=1e10, memory=1e9)
    with pytest.raises(ValueError, match="served_tokens is a positive number"):
        Constraints(served_tokens=-1.0)


def test_it_displays_itself():
    found = planned(next_runs=2, budget=1e11, target="loss")
    assert str(found).startswith("At 4e+12 FLOPs: N* = ")
    assert "<table>" in found._repr_html_()
    plain = json.loads(json.dumps(found.to_dict()))
    assert {"law", "parameters", "intervals", "objective", "certificate", "warnings"} <= set(plain)
    assert len(plain["next_runs"]["chosen"]) == 2


def test_chinchilla_points_at_the_budget_of_gopher():
    """N* at 5.76e23 FLOPs is 73.2 B on 240 rows; tokens per parameter 7.7 to 36.6 by a pairs bootstrap."""
    names = {"params": "Model Size", "flops": "Training FLOP"}
    frame = runs.read(published("chinchilla_points.csv"), columns=names).sort_values("loss").iloc[:240]
    each = plan(frame.reset_index(drop=True), flops=5.76e23, resamples=600).allocations[0]
    assert each.params.value == pytest.approx(73.2e9, rel=2e-3)
    assert each.tokens_per_param.low == pytest.approx(7.7, abs=0.8)
    assert each.tokens_per_param.high == pytest.approx(36.6, rel=0.1)
