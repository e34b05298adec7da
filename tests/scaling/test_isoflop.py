"""Approach 2: its minima against published ones, and the gates that keep unusable or doubtful ones out."""

import numpy as np
import pandas as pd
import pytest
from tables import isoflop_table, published

from scaling import runs
from scaling.approaches.isoflop import isoflop

ABLATION = ["dataset", "hparams", "warmup", "decay", "param_count", "val"]


def clean(**changes):
    return runs.check(isoflop_table(held_out=False, **changes)).frame


def test_splines_give_porians_exponents():
    """Porian et al. 2024 read minima off Akima splines; their exponents run from .497 to .864 over 15 ablations."""
    points = pd.read_csv(published("porian_isoflop_points.csv"))
    fits = pd.read_csv(published("porian_published_fits.csv"))
    assert len(fits) == 15
    for _, row in fits.iterrows():
        table = points[(points[ABLATION] == row[ABLATION]).all(axis=1)]
        found = isoflop(runs.check(table).frame, resamples=50).akima.params.slope
        assert found.value == pytest.approx(row["n_exp"], abs=0.02), tuple(row[ABLATION])
        assert row["n_exp"] in found


def test_splines_and_parabolas_agree_on_a_law_without_noise():
    found = isoflop(clean(noise=0.0, sizes=12), resamples=50)
    true = isoflop_table(held_out=False, noise=0.0)
    assert len(found.budgets) == true["flops"].nunique()
    assert found.akima.params.slope.value == pytest.approx(found.params.slope.value, abs=0.02)


def test_too_few_sizes_for_a_spline():
    assert isoflop(clean(sizes=3, noise=0.0), resamples=50).akima is None


def test_of_tuned_runs_the_best_is_used_and_replicates_all_are():
    frame = clean().assign(learning_rate=1e-3)
    worse = frame.assign(learning_rate=1e-2, loss=frame["loss"] * 1.05)
    both = pd.concat([frame, worse], ignore_index=True)
    alone, found = (isoflop(each, resamples=50) for each in (frame, both))
    assert [len(b.rows) for b in found.budgets] == [len(b.rows) for b in alone.budgets]
    assert found.params.slope.value == pytest.approx(alone.params.slope.value, rel=1e-12)
    assert "one of the same size with other settings being better" in " ".join(found.notes)

    replicates = pd.concat([frame, frame.assign(seed=1, loss=frame["loss"] * 1.001)], ignore_index=True)
    found = isoflop(replicates, resamples=50)
    assert [len(b.rows) for b in found.budgets] == [2 * len(b.rows) for b in alone.budgets]
    assert not any("same size" in note for note in found.notes)

    unknown = replicates.drop(columns=["seed", "learning_rate"])
    assert "taken for replicates" in " ".join(isoflop(unknown, resamples=50).notes)


def test_an_under_tuned_run_is_named_and_a_clean_table_is_not():
    frame = clean(noise=0.003, sizes=9)
    assert not any("under-tuned" in note for note in isoflop(frame, resamples=50).notes)
    budget = frame.index[frame["flops"] == frame["flops"].max()]
    spoiled = budget[3]
    frame.loc[spoiled, "loss"] *= 1.05
    said = [note for note in isoflop(frame, resamples=50).notes if "under-tuned" in note]
    assert len(said) == 1
    assert f"the run of {frame.loc[spoiled, 'params']:.3g} parameters" in said[0]


def test_a_minimum_beside_the_last_size_is_doubted():
    frame = clean(noise=0.0, sizes=9)
    assert not any("only one size" in note for note in isoflop(frame, resamples=50).notes)
    top = frame["flops"].max()
    lowest = frame.loc[frame.loc[frame["flops"] == top, "loss"].idxmin(), "params"]
    sizes = np.sort(frame.loc[frame["flops"] == top, "params"])
    first = sizes[np.searchsorted(sizes, lowest) - 1]
    cut = frame[(frame["flops"] < top) | (frame["params"] >= first)]
    assert "only one size lies below the minimum" in " ".join(isoflop(cut, resamples=50).notes)
