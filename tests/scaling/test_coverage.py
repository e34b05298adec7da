"""Of simulated tables, do intervals hold the truth as often as they claim?

Run with -s to see the tables, and tests/scaling/coverage.py for more of them.
"""

import numpy as np
import pytest
from coverage import BAND, METHODS, NAMES, Coverage, simulate

from scaling.certainty.covariance import MANY


def test_the_judge_of_coverage_can_say_no():
    def found(hits):
        return Coverage(24, "normal", 200, {("laplace", name): hits for name in NAMES}).outside()

    assert not found(190)
    assert not found(176)
    assert len(found(160)) == len(NAMES)
    assert len(found(200)) == 0 or BAND[1] < 0.98
    assert len(Coverage(24, "normal", 1000, {("laplace", "E"): 1000}).outside()) == 1


def test_a_small_simulation_runs_and_prints():
    found = simulate(24, "normal", 3, methods=("laplace", "profile"))
    assert "3 tables" in str(found)
    assert set(found.hits) == {(m, n) for m in ("laplace", "profile") for n in NAMES} - {("profile", "new run")}


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "kind"), [(24, "normal"), (60, "normal"), (240, "normal"), (24, "heavy")])
def test_intervals_hold_the_truth_as_often_as_they_claim(rows, kind):
    # The wild bootstrap is too narrow where delta is small against the residuals, and says so.
    methods = METHODS if rows < MANY else [method for method in METHODS if method != "wild"]
    found = simulate(rows, kind, 100, methods=methods, resamples=300)
    print(f"\n{found}")
    assert not found.outside()
    assert BAND[0] < np.mean([found.share(*key) for key in found.hits]) < BAND[1]


@pytest.mark.slow
def test_where_noise_differs_methods_that_do_not_assume_it_equal_hold():
    found = simulate(240, "differing", 100, resamples=300, methods=("pairs", "laplace", "profile"))
    print(f"\n{found}")
    # One run's noise is not that of all: the interval of a new run knows the average only.
    assert not [cell for cell in found.outside() if "new run" not in cell]
