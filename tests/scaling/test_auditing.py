"""The audit against known laws, published figures, and tables that can tell no law from another."""

import json

import numpy as np
import pytest
from tables import TRUTH, isoflop_table, loss, published

from scaling import fit, runs
from scaling.decisions.audit import audit
from scaling.decisions.trials import degenerate, marks_of

FEW = ("chinchilla", "floor-flops", "kaplan-n")


def wide_table(*, seed=0, noise=0.004, beta=TRUTH["beta"]):
    """Five budgets over three decades; `beta` may depend on compute, so that no one law holds."""
    frame = isoflop_table(seed=seed, noise=0.0, sizes=7, budgets=np.geomspace(1e10, 1e13, 5), held_out=False)
    shocks = np.exp(noise * np.random.default_rng(seed).standard_normal(len(frame)))
    bent = np.broadcast_to(beta(frame["flops"]) if callable(beta) else beta, len(frame))
    scale = TRUTH["B"] * 1e8 ** (bent - TRUTH["beta"])  # turns about 1e8 tokens
    true = [loss(n, d, TRUTH | {"B": b, "beta": e}) for n, d, b, e in zip(*sized(frame), scale, bent, strict=True)]
    return frame.assign(loss=np.array(true) * shocks)


def sized(frame):
    return frame["params"], frame["tokens"]


@pytest.fixture(scope="module")
def sound():
    return audit(wide_table(), FEW, resamples=100)


def test_the_law_behind_the_table_predicts_best_and_the_baseline_is_beaten(sound):
    assert sound.scores[0].law == "chinchilla"
    best, floor, _ = sound.scores
    assert best.error < 0.01 < 0.03 < sound.baseline.error
    assert best.tied == 1.0
    assert floor.tied < 0.05
    assert best.coverage > 0.8
    assert best.left_out.error < 0.01 < sound.baseline.left_out.error
    assert max(each.reach for each in best.cutoffs) > 30
    assert not sound.design
    assert sound.answer.startswith("chinchilla predicts best")


def test_errors_are_those_of_a_fit_by_hand(sound):
    """Below the last cut-off, fitted and predicted without the audit."""
    frame = runs.check(wide_table()).frame
    at = sound.scores[0].cutoffs[-1]
    below = frame[frame["flops"] < at.cutoff]
    above = frame[frame["flops"] >= at.cutoff]
    error = np.log(above["loss"] / fit(below, "chinchilla").predict(above))
    assert (at.fitted, at.predicted) == (len(below), len(above))
    assert at.error == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
    assert at.bias == pytest.approx(np.mean(error), abs=1e-5)
    assert at.reach == pytest.approx(above["flops"].max() / below["flops"].max())


@pytest.mark.slow
def test_exponents_hold_where_the_law_does_and_drift_where_it_does_not(sound):
    held = {drift.quantity: drift for drift in sound.drifts}
    assert set(held) == {"a", "alpha", "beta"}
    assert not any(drift.moves for drift in held.values())
    bent = audit(wide_table(beta=lambda c: 0.35 - 0.03 * np.log10(c / 3e11)), ("chinchilla",), resamples=100)
    moved = {drift.quantity: drift for drift in bent.drifts}
    assert moved["beta"].moves
    assert "with scale" in moved["beta"].text
    assert "drift with scale" in bent.answer


def test_a_collinear_design_is_refused_and_told_why():
    frame = wide_table()[["params"]]
    frame["tokens"] = 20 * frame["params"]
    frame["loss"] = loss(frame["params"], frame["tokens"])
    found = audit(frame, (*FEW, "chinchilla-tied", "power-params"), resamples=50)
    assert "same tokens per parameter (20)" in found.refused["chinchilla"]
    (refused,) = (section.rows for section in found.page().sections if section.title == "Not extrapolated")
    assert refused[0] == ("chinchilla, chinchilla-tied", found.refused["chinchilla"])
    assert any("power-params as kaplan-n" in note for note in found.notes)
    assert "chinchilla" not in [score.law for score in found.scores]
    assert found.answer.startswith("Every run has the same tokens per parameter (20), a collinear design")
    assert any("Runs at other tokens per parameter" in warning for warning in found.warnings)


@pytest.mark.slow
def test_tables_too_small_or_of_one_size_are_flagged_and_not_ranked():
    small = audit(isoflop_table(held_out=False).head(9), FEW)
    assert not small.scores
    assert "too few or too alike" in " ".join(small.warnings)
    assert small.answer == "No law is ranked."
    one = wide_table()
    one["params"] = 2e4
    one = one.drop(columns="flops")
    found = audit(one, FEW, resamples=50)
    assert "every run has the same params (20k)" in found.refused["chinchilla"]
    assert "every run has the same params (20k)" in found.refused["kaplan-n"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"params": [1e6, 1e7, 1e8], "tokens": [1e9, 1e9, 1e9]}, "every run has the same tokens (1B)"),
        ({"params": [1e6, 1e7, 1e8], "tokens": [2e7, 2e8, 2e9]}, "same tokens per parameter (20)"),
        ({"params": [1e6, 1e7, 1e8], "tokens": [1e9, 1e8, 1e7]}, "params and tokens move together"),
        ({"params": [1e6, 1e7, 1e8], "tokens": [1e9, 3e9, 1e9]}, ""),
        ({"flops": [1e15, 1e16, 1e17]}, ""),
    ],
)
def test_degenerate_designs(columns, said):
    found = degenerate({name: np.array(values) for name, values in columns.items()})
    assert said in found
    assert bool(found) == bool(said)


def test_cut_offs_lie_between_budgets_and_leave_something_on_both_sides():
    frame = runs.check(wide_table()).frame
    marks = marks_of(frame)
    budgets = np.geomspace(1e10, 1e13, 5)
    # One budget alone is a collinear design, so the first cut-off leaves two.
    assert len(marks) == 3
    for mark, low, high in zip(marks, budgets[1:], budgets[2:], strict=False):
        assert low < mark < high
    with pytest.raises(ValueError, match="cut-off of 1e\\+09 FLOPs leaves no runs to fit"):
        marks_of(frame, [1e9])


def test_mistakes():
    with pytest.raises(ValueError, match="no law 'chincilla'; did you mean 'chinchilla'"):
        audit(wide_table(), ["chincilla"])
    with pytest.raises(ValueError, match="needs column 'unique_tokens'"):
        audit(wide_table(), ["data-constrained"])


def test_it_displays_itself(sound):
    text = str(sound)
    assert text.startswith("chinchilla predicts best")
    assert "nearest run" in text
    assert "<table>" in sound._repr_html_()
    found = json.loads(json.dumps(sound.to_dict()))
    assert [each["law"] for each in found["ranking"]] == [score.law for score in sound.scores]
    assert found["drift"]["law"] == "chinchilla"


def test_the_exponents_of_the_chinchilla_points_fall_with_the_cut_off():
    """Fits below 1e20, 3e20, 1e21 FLOPs and of all runs, as found by an independent minimiser."""
    names = {"params": "Model Size", "flops": "Training FLOP"}
    frame = runs.read(published("chinchilla_points.csv"), columns=names).sort_values("loss").iloc[:240]
    found = audit(frame.reset_index(drop=True), ["chinchilla"], cutoffs=(1e20, 3e20, 1e21), resamples=100)
    a = next(drift for drift in found.drifts if drift.quantity == "a")
    assert [each.value for each in a.estimates] == pytest.approx([0.602, 0.578, 0.548, 0.514], abs=6e-4)
    assert a.moves
    assert "a falls with scale" in a.text
