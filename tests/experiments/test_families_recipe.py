"""The recipe of three families: equal budgets and rows, three objectives that no table mixes, one figure."""

import numpy as np
import pandas as pd
import pytest

from experiments.objectives import Vocabulary
from experiments.recipes import families
from experiments.recipes.families import Families
from experiments.runs import write_csv
from scaling import runs
from scaling.approaches.study import study


class Prepared:
    """Rows as far as a sweep asks, with the ids that are reserved in them."""

    fingerprint = "0" * 16

    class tokenizer:
        vocab, extra, pad, bos, eos, unk = 528, 16, 0, 1, 2, 3


@pytest.fixture(scope="module")
def sweeps():
    recipe = Families()
    return {family: recipe.sweep(family, Prepared) for family in families.DEPTHS}


def test_budgets_and_rows_are_the_same_and_objectives_are_not(sweeps):
    labels = set()
    for cells in sweeps.values():
        assert {cell.budget for cell in cells} == set(families.BUDGETS)
        assert {cell.run.rows for cell in cells} == {Prepared.fingerprint}
        assert {cell.run.data for cell in cells} == {families.DATA}
        for cell in cells:
            flops = cell.run.cost.flops(cell.run.tokens)
            assert flops == pytest.approx(cell.budget, rel=0.02)
        labels |= {cell.run.objective.label for cell in cells}
    assert labels == {"masked-15%", "causal", "span-corruption-15%-spans-of-3"}
    assert Vocabulary.of(Prepared.tokenizer).size == sweeps["t5"][0].run.architecture.vocab


def rows_of(cells, shift):
    """A table as if the runs had followed a law."""
    rng = np.random.default_rng(0)
    rows = []
    for cell in cells:
        columns = cell.run.columns()
        loss = shift + 40 / columns["params"] ** 0.35 + 900 / columns["tokens"] ** 0.55
        rows.append(columns | {"budget": cell.budget, "role": "sweep", "status": "done"})
        rows[-1]["loss"] = loss * float(np.exp(0.003 * rng.normal()))
    return rows


@pytest.mark.slow
def test_each_family_has_a_law_and_a_panel_of_its_own(sweeps, tmp_path):
    studies = {}
    for number, (family, cells) in enumerate(sweeps.items()):
        write_csv(tmp_path / f"{family}.csv", rows_of(cells, 1.0 + number))
        studies[family] = study(runs.read(tmp_path / f"{family}.csv"), resamples=50)
    figure = families.drawn(studies)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"{family}: {families.objective_of(found)}" for family, found in studies.items()]
    limits = {axes.get_ylim() for axes in figure.axes}
    assert len(limits) == 3  # no shared axis of losses
    assert all(len(axes.lines) == 2 * len(families.BUDGETS) for axes in figure.axes)
    assert families.said("t5", studies["t5"]).startswith("t5    span-corruption-15%-spans-of-3")


def test_one_table_of_all_is_refused(sweeps):
    every = [row for cells in sweeps.values() for row in rows_of(cells, 1.0)]
    with pytest.raises(ValueError, match="mixes losses of the objectives"):
        runs.check(pd.DataFrame(every))
