"""Tables: what is read, derived, dropped and refused."""

import numpy as np
import pandas as pd
import pytest
from tables import isoflop_table

from scaling import runs


def write_text(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_reads_the_same_table(tmp_path, kind):
    table = isoflop_table()
    path = tmp_path / f"runs.{kind}"
    if kind == "csv":
        runs.write(table, path)
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True, double_precision=15)
    else:
        table.to_parquet(path)
    read = runs.read(path)
    np.testing.assert_allclose(read["loss"], table["loss"], rtol=1e-13)
    assert list(read["run"]) == list(table["run"])


def test_written_floats_come_back_to_the_last_bit_and_unknown_columns_stay(tmp_path):
    table = isoflop_table().assign(zebra=np.pi, loss_se=0.1 + 0.2)
    read = runs.read(runs.write(table, tmp_path / "deep" / "runs.csv"))
    for name in ("params", "tokens", "flops", "loss", "loss_se", "zebra"):
        assert (read[name] == table[name]).all()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["runs.csv"]


def test_columns_are_renamed_and_rows_selected(tmp_path):
    table = isoflop_table(held_out=False).rename(columns={"params": "Model Size", "loss": "final"})
    path = runs.write(table, tmp_path / "runs.csv")
    read = runs.read(path, columns={"params": "Model Size", "loss": "final"}, where="loss < 4.5")
    assert 0 < len(read) < len(table)
    assert (read["loss"] < 4.5).all()
    assert len(runs.read(path, where="`Model Size` > 1e4")) == (table["Model Size"] > 1e4).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"params": "parms"}}, "no column 'parms'.*did you mean 'params'"),
        ({"where": "los < 3"}, "no column 'los'.*did you mean 'loss'"),
        ({"where": "loss < "}, "cannot read the row filter"),
        ({"where": "loss + 1"}, "cannot read|does not select"),
        ({"where": "loss < 0"}, "no row of 25"),
    ],
)
def test_reading_refuses_in_one_line(tmp_path, options, message):
    path = runs.write(isoflop_table(), tmp_path / "runs.csv")
    with pytest.raises(ValueError, match=message) as caught:
        runs.read(path, **options)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table of runs"):
        runs.read(tmp_path / "absent.csv")
    for name, text, message in (
        ("empty.csv", "", "empty"),
        ("header.csv", "params,loss\n", "no rows"),
        ("runs.xlsx", "x", "not '.xlsx'"),
        ("bad.jsonl", "{", "not a readable jsonl"),
        ("bad.parquet", "x", "not a readable parquet"),
    ):
        with pytest.raises(ValueError, match=message):
            runs.read(write_text(tmp_path / name, text))


def test_the_third_of_params_tokens_flops_is_derived_and_said():
    table = isoflop_table(held_out=False)[["params", "tokens", "loss"]]
    checked = runs.check(table)
    np.testing.assert_allclose(checked.frame["flops"], 6 * table["params"] * table["tokens"])
    assert any("flops" in note and "derived" in note for note in checked.notes)
    back = runs.check(checked.frame[["params", "flops", "loss"]])
    np.testing.assert_allclose(back.frame["tokens"], table["tokens"])


def test_unusable_rows_are_dropped_with_a_note_each():
    table = isoflop_table(held_out=False)
    table.loc[0, "loss"] = np.nan
    table.loc[1, "loss"] = np.inf
    table.loc[2, "loss"] = -1.0
    table.loc[3, "params"] = 0.0
    table.loc[4, "status"] = "failed"
    table = pd.concat([table, table.iloc[[10]]], ignore_index=True)
    checked = runs.check(table)
    assert len(checked.frame) == len(table) - 6
    assert np.isfinite(checked.frame["loss"]).all()
    said = " ".join(checked.notes)
    for part in ("failed", "not finite", "not positive", "same row again", "r10"):
        assert part in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="loss").assign(lossy=1.0), "no column 'loss'; did you mean 'lossy'"),
        (
            lambda t: t.drop(columns="params").rename(columns={"params_nonembedding": "parameters"}),
            "no column 'params'",
        ),
        (lambda t: t.drop(columns=["tokens", "flops"]), "neither 'tokens' nor 'flops'"),
        (lambda t: t.head(2), "2 usable runs, at least 3"),
        (lambda t: t.assign(loss=np.nan), "column 'loss' holds no numbers"),
        (lambda t: t.assign(loss="high"), "column 'loss' holds no numbers"),
        (lambda t: t.assign(status="failed"), "0 usable runs.*failed"),
        (
            lambda t: t.assign(params=np.where(t.index < 3, 7.0, 7e9), flops=np.nan).drop(columns="flops"),
            "'params' mixes units: it holds 7 and, next above, 7e\\+09",
        ),
        (lambda t: t.assign(params=t["params"] / 1e9), "'params' holds no counts of ones.*params \\* 1e9"),
        (
            lambda t: t.assign(objective=np.where(t.index < 5, "masked-15%", "causal")),
            "mixes losses of the objectives 'causal', 'masked-15%'.*--where",
        ),
        (lambda t: t.assign(tokens=t["tokens"] / 1e4), "flops is 1e\\+04 times 6 x params x tokens in 25 of 25 rows"),
    ],
)
def test_a_table_that_cannot_be_fitted_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        runs.check(change(isoflop_table()))


def test_columns_are_mapped_by_expressions_too(tmp_path):
    table = isoflop_table(held_out=False)
    path = runs.write(table.assign(params=table["params"] / 1e9), tmp_path / "runs.csv")
    read = runs.read(path, columns={"params": "params * 1e9", "tokens": "flops / (6 * params * 1e9)"})
    np.testing.assert_allclose(read["params"], table["params"])
    np.testing.assert_allclose(read["tokens"], table["flops"] / (6 * table["params"]))
    with pytest.raises(ValueError, match=r"'parms \* 2' .* neither a column nor an expression"):
        runs.read(path, columns={"params": "parms * 2"})


def test_a_table_of_a_million_rows_is_checked(tmp_path):
    generator = np.random.default_rng(0)
    params, tokens = (10 ** generator.uniform(6, 9, 1_000_000) for _ in range(2))
    frame = pd.DataFrame({"params": params, "tokens": tokens, "loss": 3 + generator.random(1_000_000)})
    assert len(runs.check(frame).frame) == 1_000_000


def test_conventions_name_their_columns():
    table = isoflop_table()
    kaplan = runs.Convention(params="params_nonembedding", flops="flops_kaplan")
    view = kaplan.view(runs.check(table, convention=kaplan).frame)
    np.testing.assert_allclose(view["flops"], 6 * table["params_nonembedding"] * table["tokens"])
    with pytest.raises(ValueError, match="did you mean 'params_nonembedding'"):
        runs.check(table, convention=runs.Convention(params="params_nonembeding"))
