"""Two tables against each other: known laws, equal laws, laws that cross, and tables that do not compare."""

import json

import numpy as np
import pytest
from tables import BUDGETS, TRUTH, flops_per_token, isoflop_table, loss

from scaling.decisions.compare import compare

GRID = np.geomspace(1e2, 1e8, 200_001)


def table(*, seed, noise=0.003, **changed):
    """Runs of the usual law with some of its constants changed."""
    frame = isoflop_table(held_out=False, noise=0.0, sizes=8)
    shocks = np.exp(noise * np.random.default_rng(seed).standard_normal(len(frame)))
    return frame.assign(loss=loss(frame["params"], frame["tokens"], TRUTH | changed) * shocks)


def lowest(flops, **changed):
    return loss(GRID, flops / flops_per_token(GRID), TRUTH | changed).min()


def compared(first, second, **more):
    return compare(first, second, **{"resamples": 200} | more)


def test_the_better_recipe_wins_by_the_compute_it_is_worth():
    better = {"A": 0.9 * TRUTH["A"], "B": 0.9 * TRUTH["B"]}
    found = compared(table(seed=0), table(seed=1, **better), flops=BUDGETS[-1])
    (at,) = found.verdicts
    assert at.probability > 0.99
    assert lowest(BUDGETS[-1], **better) - lowest(BUDGETS[-1]) in at.difference
    # By search: the budget at which the first reaches the loss of the second.
    wanted = lowest(BUDGETS[-1], **better)
    factors = np.geomspace(1, 10, 400)
    worth = factors[np.argmax([lowest(BUDGETS[-1] * each) <= wanted for each in factors])]
    assert worth in at.multiplier
    assert at.multiplier.value == pytest.approx(worth, rel=0.15)
    assert "second is better with probability" in found.answer
    turned = compared(table(seed=1, **better), table(seed=0), flops=BUDGETS[-1]).verdicts[0]
    assert turned.probability < 0.01
    assert turned.multiplier.value == pytest.approx(1 / at.multiplier.value, rel=0.1)


@pytest.mark.slow
def test_equal_recipes_are_not_told_apart():
    sure = [
        max(p, 1 - p)
        for seed in range(0, 8, 2)
        for p in [compared(table(seed=seed), table(seed=seed + 1), flops=2e11).verdicts[0].probability]
    ]
    assert sum(each > 0.95 for each in sure) <= 1
    found = compared(table(seed=0), table(seed=0), flops=2e11)
    assert "do not say which is better" in found.answer
    assert 1.0 in found.verdicts[0].multiplier


@pytest.mark.slow
def test_the_budget_at_which_the_ranking_turns():
    """The second has the larger floor and the faster start, so that it is better below and worse above."""
    other = {"E": 1.9, "A": 0.8 * TRUTH["A"], "B": 0.8 * TRUTH["B"]}
    grid = np.geomspace(1e10, 1e13, 300)
    crossing = grid[np.argmax([lowest(c, **other) > lowest(c) for c in grid])]
    found = compared(table(seed=2, noise=0.001), table(seed=3, noise=0.001, **other))
    assert found.crossing.flops.value == pytest.approx(crossing, rel=0.25)
    assert crossing in found.crossing.flops
    assert found.crossing.better_below == "second"
    assert found.crossing.probability > 0.9
    assert "The ranking turns at" in found.answer
    never = compared(table(seed=2), table(seed=3, A=0.5 * TRUTH["A"], B=0.5 * TRUTH["B"]))
    assert np.isnan(never.crossing.flops.value)


def test_tables_that_do_not_compare_are_told_why():
    plain = table(seed=0).assign(vocab=512, bits_per_byte=1.0)
    other = table(seed=1).assign(vocab=1024, bits_per_byte=1.0)
    said = " ".join(compared(plain, other).warnings)
    assert "vocab differs (512 and 1024)" in said
    assert "both tables have bits_per_byte" in said
    bits = plain.assign(loss=plain["loss"] / np.log(2))
    assert "another unit" not in said
    assert "another unit" in " ".join(compared(plain, bits.assign(loss=bits["loss"] * 1.2)).warnings)
    costly = table(seed=1)
    costly["flops"] *= 1.5
    assert "another convention of FLOPs or parameters" in " ".join(compared(table(seed=0), costly).warnings)
    assert not compared(table(seed=0), table(seed=1), flops=2e11).warnings


@pytest.mark.slow
def test_budgets_far_beyond_the_runs_and_fits_that_contradict_them_are_warned_about():
    far = compared(table(seed=0), table(seed=1), flops=1e15)
    assert "1.25e+03 times beyond" in " ".join(far.warnings)
    # The largest budget of the second is better than any law of its smaller ones would say.
    odd = table(seed=1)
    odd.loc[odd["flops"] == BUDGETS[-1], "loss"] *= 0.9
    said = " ".join(compared(table(seed=0), odd, flops=BUDGETS[-1]).warnings)
    assert "the law does not describe these tables well enough" in said or "misses something" in said


def test_mistakes_name_the_table():
    with pytest.raises(ValueError, match="second: the table has no column 'loss'"):
        compared(table(seed=0), table(seed=1).drop(columns="loss"))
    with pytest.raises(ValueError, match="compute budget is a positive number"):
        compared(table(seed=0), table(seed=1), flops=[1e11, 0.0])
    with pytest.raises(ValueError, match="kaplan-c"):
        compared(table(seed=0), table(seed=1), law="kaplan-c")


def test_it_displays_itself():
    found = compared(table(seed=0), table(seed=1), names=("old", "new"), resamples=50)
    text = str(found)
    assert "old" in text
    assert "p(new better)" in text
    assert "<table>" in found._repr_html_()
    plain = json.loads(json.dumps(found.to_dict()))
    assert len(plain["budgets"]) == len(found.verdicts)
    assert set(plain["fits"]) == {"old", "new"}
