"""Approaches side by side under each convention, and what their disagreement is put down to."""

import numpy as np
import pytest
from tables import curves_of, isoflop_table

from scaling import runs
from scaling.approaches.conventions import approaches, available
from scaling.approaches.disagreement import disagreements
from scaling.approaches.study import Approach, study
from scaling.runs import Convention

TABLE = isoflop_table(noise=0.0, sizes=8)


def test_columns_that_hold_the_same_are_one_convention():
    frame = runs.check(isoflop_table(held_out=False)).frame
    assert available(frame) == tuple(
        Convention(n, c) for n in ("params", "params_nonembedding") for c in ("flops", "flops_6nd", "flops_kaplan")
    )
    plain = runs.check(frame[["params", "tokens", "loss"]]).frame
    assert available(plain) == (Convention(),)


def test_every_fit_is_redone_under_every_convention():
    table = TABLE.assign(params_nonembedding=TABLE["params"] ** 1.2 / 20)
    found = approaches(table, resamples=30)
    exponents = {
        convention: made.exponents()[Approach.PARAMETRIC][0].value for convention, made in found.studies.items()
    }
    # The optimum is the same runs: counted as N^1.2, its exponent in the same compute is 1.2 times as large.
    assert exponents[Convention("params_nonembedding", "flops")] == pytest.approx(
        1.2 * exponents[Convention()], rel=0.02
    )
    text, record = str(found), found.to_dict()
    for convention in found.studies:
        assert str(convention) in text
    assert len(record["conventions"]) == len(found.studies)
    assert "N_opt grows as C^a" in found._repr_html_()


def test_on_a_laws_own_losses_the_difference_is_the_method():
    (found,) = (each for each in disagreements(study(TABLE, resamples=30)) if each.approach.startswith("2"))
    assert abs(found.data) < 1e-3
    assert found.a - found.law == pytest.approx(found.method, abs=1e-3)


def test_runs_that_leave_the_law_are_said_to():
    """A loss term no law of N and D has moves the minima of every budget but hardly the law."""
    tilt = np.log(TABLE["params"] / 2.4e4) * np.log(TABLE["flops"] / 2e11)
    leaving = study(TABLE.assign(loss=TABLE["loss"] * np.exp(0.03 * tilt)), resamples=30)
    (found,) = (each for each in disagreements(leaving) if each.approach.startswith("2"))
    assert abs(found.data) > 0.05
    assert abs(found.data) > 2 * abs(found.method)
    assert "do not follow the law" in str(found)


@pytest.mark.slow
def test_training_curves_move_with_the_convention():
    """The envelope under another count is that of the same curves, each counted as its run is."""
    table = TABLE.assign(params_nonembedding=TABLE["params"] / 2)
    found = approaches(table, curves_of(TABLE), resamples=30)
    own, other = (found.studies[Convention(name, "flops")].frontier for name in ("params", "params_nonembedding"))
    assert other.curves == own.curves > 0
    np.testing.assert_allclose(other.points["params"], own.points["params"] / 2)
