"""Figures, the report, and the three commands that show a table of runs."""

import base64
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tyro
from tables import TRUTH, curves_of, isoflop_table

from experiments.commands import fit as fit_command
from experiments.commands import plot as plot_command
from experiments.commands import report as report_command
from scaling import figures, report, runs
from scaling.approaches import conventions
from scaling.approaches.held_out import predict_held_out
from scaling.approaches.study import study
from scaling.report import explorer, pictures, tables

TABLE = isoflop_table()


@pytest.fixture(scope="module")
def made():
    return study(TABLE, curves_of(TABLE), resamples=100)


@pytest.fixture(scope="module")
def page(made):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "_PAIRS", ())  # one way of counting; test_explorer.py has two
        held = predict_held_out(made, TABLE)
        return report.html(made, held, title="Tiny <decoders>", command="scaling report runs.csv")


@pytest.fixture
def quick(monkeypatch):
    """One convention, no further laws, drawings not rendered: for tests of what stands around them."""
    monkeypatch.setattr(report.pictures, "render", lambda figure, kind: b"<svg>drawn, not written</svg>")
    monkeypatch.setattr(explorer, "_PAIRS", ())


@pytest.fixture
def folder(tmp_path):
    runs.write(TABLE, tmp_path / "runs.csv")
    runs.write(curves_of(TABLE), tmp_path / "curves.csv")
    return tmp_path


def run(command, *arguments):
    return tyro.cli(command.Command, args=[str(argument) for argument in arguments])()


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_a_study_with_missing_approaches_is_drawn_and_reported():
    few = TABLE[TABLE["params"] > 3e4].assign(role="sweep").reset_index(drop=True)
    made = study(few, resamples=50)
    assert made.missing
    page = report.html(made, further=())
    assert "could not be fitted" in page
    assert '"missing":' in page


def test_the_report_stands_alone(page):
    assert not re.findall(r"(?:src|href|srcset|url\()\s*=?\s*['\"]?(?!data:)[a-z]+:", page)
    addresses = set(re.findall(r"https?://[^'\"\s<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a namespace, never fetched
    assert "Tiny &lt;decoders&gt;" in page
    pictures = re.findall(r"<img src='data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)'", page)
    assert len(pictures) == len(figures.FIGURES)
    assert all(b"<svg" in base64.b64decode(each) for each in pictures)
    assert page.count("alt='") == len(figures.FIGURES)
    assert len(page) < 1.5e6
    identities = re.findall(r"\sid=['\"]([\w-]+)['\"]", page)
    assert len(identities) == len(set(identities))


def test_a_drawing_turns_dark_on_a_dark_page(made):
    svg = figures.render(figures.predicted_against_measured(made), "svg").decode()
    both = pictures.follow_theme(svg)
    day, night = pictures.palette(figures.LIGHT), pictures.palette(figures.DARK)
    light, dark = re.search(r":root\{(.*?)\}.*?:root\{(.*?)\}", both).groups()
    names = re.findall(r"--(\w+):", light)
    assert {"ink", "paper", "faint"} <= set(names)
    for name in names:
        assert f"--{name}:{day[name]};" in light
        assert f"--{name}:{night[name]};" in dark
    drawn = both[both.index("</style>") :]
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)  # no colour is left that would stay as it is
    assert re.findall(r"#[0-9a-f]{6}\b", svg)


def test_words_in_the_data_cannot_end_the_script():
    text = explorer.script({"name": "</script><script>alert(1)</script>"})
    assert "<" not in text
    assert json.loads(text)["name"].startswith("</script>")


@pytest.mark.slow
def test_large_tables_are_thinned_in_the_page():
    generator = np.random.default_rng(0)
    params, tokens = 10 ** generator.uniform(6, 9, 2200), 10 ** generator.uniform(8, 11, 2200)
    loss = 1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37
    many = pd.DataFrame({"params": params, "tokens": tokens, "loss": loss * np.exp(0.01 * generator.normal(size=2200))})
    found = study(many, resamples=20)
    content = explorer.data(found, (), further=())
    assert content["runs"]["of"] == 2200
    assert len(content["runs"]["name"]) == len(content["conventions"][0]["n"]) == 2000
    table = tables.runs(found, ())
    assert "2,000 of 2,200 runs" in table
    assert table.count("<tr") == 2001
    assert len(explorer.script(content)) < 4e5


def test_only_conventions_in_use_are_offered():
    checked = runs.check(TABLE[TABLE["role"] == "sweep"]).frame
    own = runs.Convention()
    found = explorer.countings(checked, own)
    assert found[0] == own
    assert {(each.params, each.flops) for each in found[1:]} == {
        ("params", "flops_6nd"), ("params_nonembedding", "flops"), ("params_nonembedding", "flops_kaplan"),
    }  # fmt: skip
    assert explorer.countings(checked.assign(flops=checked["flops_6nd"]).drop(columns="params_nonembedding"), own) == (
        own,
    )


@pytest.mark.slow
def test_another_convention_is_the_table_read_that_way(made):
    """Refitted under C = 6 N' D, as a study of the renamed table would be; the training curves move with their runs."""
    there = conventions.under(made, runs.Convention("params_nonembedding", "flops_kaplan"))
    kept = made.frame.assign(params=made.frame["params_nonembedding"], flops=made.frame["flops_kaplan"])
    alone = study(kept[["run", "params", "tokens", "flops", "loss"]], resamples=made.resamples)
    assert there.optimum(1e12).params.value == pytest.approx(alone.optimum(1e12).params.value, rel=1e-9)
    ends = there.curves.sort_values("flops").groupby("run").last()
    runs_there = there.view.set_index("run")
    np.testing.assert_allclose(ends["flops"], runs_there.loc[ends.index, "flops"], rtol=1e-9)
    np.testing.assert_allclose(ends["params"], runs_there.loc[ends.index, "params"], rtol=1e-9)


def test_laws_of_other_columns_are_refused():
    with pytest.raises(ValueError, match="that read params and tokens alone"):
        explorer.of_params_and_tokens(["kaplan-n"])
    with pytest.raises(ValueError, match="no law 'kaplan-ndd'"):
        explorer.of_params_and_tokens(["kaplan-ndd"])


def test_the_report_shows_the_numbers(made, page):
    (held,) = predict_held_out(made, TABLE)
    a, _ = made.exponents()[made.choice]
    text = re.sub(r"<script.*?</script>", "", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page), flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", "", text)
    for number in (f"{held.predicted.value:.3f}", f"{held.loss:.3f}", f"{a.value:.2f}", f"{abs(held.error):.2%}"):
        assert number in text
    assert "inside the 95 % interval" in text
    for name in TABLE["run"]:
        assert name in text
    for value in made.parametric.bootstrap.fit.parameters.values():
        assert f"{value:.5g}" in text
    missed = (replace(held, loss=held.predicted.high * 1.1),)
    assert "OUTSIDE" in " ".join(report.lead(made, missed))


def test_fit_prints_one_json_object(folder, capsys):
    assert run(fit_command, folder / "runs.csv", "--json", "--resamples", 100) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"law", "columns", "parameters", "intervals", "objective", "certificate", "warnings"} <= set(found)
    assert found["law"] == "chinchilla"
    assert found["runs"] == len(TABLE) - 1
    for name, value in TRUTH.items():
        each = found["intervals"][name]
        assert each["low"] <= found["parameters"][name] <= each["high"]
        assert each["low"] * 0.9 <= value <= each["high"] * 1.1
        assert "profile" in each["method"] or "bootstrap" in each["method"]


def test_fit_maps_columns_filters_rows_and_prints_a_table(tmp_path, capsys):
    renamed = TABLE.drop(columns="flops").rename(columns={"params": "Model Size", "loss": "final"})
    path = runs.write(renamed, tmp_path / "theirs.csv")
    names = ("--params", "Model Size", "--loss", "final")
    run(fit_command, path, *names, "--where", "final < 5.3", "--resamples", 50, "--law", "floor-params", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["columns"] == {"params": "Model Size"}
    assert found["runs"] < len(TABLE) - 1
    assert any("flops" in note for note in found["notes"])
    run(fit_command, path, *names, "--resamples", 50)
    printed = capsys.readouterr().out
    assert "certified optimum" in printed
    assert "alpha" in printed
    collinear = TABLE.assign(tokens=20 * TABLE["params"]).drop(columns="flops")
    run(fit_command, runs.write(collinear, tmp_path / "line.csv"), "--resamples", 50, "--json")
    assert "collinear" in " ".join(json.loads(capsys.readouterr().out)["warnings"])
    with pytest.raises(ValueError, match="did you mean 'Model Size'"):
        run(fit_command, path, "--params", "Model Sise")
    with pytest.raises(ValueError, match="no law 'chinchila'"):
        run(fit_command, path, *names, "--law", "chinchila")


@pytest.mark.slow
def test_plot_writes_whole_files_of_the_kinds_asked_for(folder, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in ("residuals", "optimal_sizes")})
    options = ("--resamples", 50, "--formats", "png", "pdf", "--theme", "dark", "--beside", "Hoffmann", "--audit")
    assert run(plot_command, folder / "runs.csv", "-o", folder / "figures", *options) == 0
    files = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    names = ("residuals", "optimal_sizes", "exponent_drift")
    assert set(files) == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    assert all(data.startswith(starts[name[-3:]]) for name, data in files.items())
    with pytest.raises(ValueError, match="did you mean 'Hoffmann'"):
        run(plot_command, folder / "runs.csv", "--beside", "Hofman")


@pytest.mark.usefixtures("quick")
def test_report_uses_the_curves_beside_the_table_and_says_how_to_repeat_it(folder):
    options = ("--resamples", 50, "--laws", "kaplan-nd", "--title", "My runs")
    assert run(report_command, folder / "runs.csv", "-o", folder / "report.html", *options) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "training curves of 24 runs" in page
    assert "scaling report runs.csv -o report.html --resamples 50 --title &#x27;My runs&#x27;" in page
    assert "law kaplan-nd" in page
    assert str(folder) not in page
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(ValueError, match="did you mean 'kaplan-nd'"):
        run(report_command, folder / "runs.csv", "--laws", "kaplan-n-d")


def test_help_is_quick_and_loads_no_heavy_library():
    code = (
        "import sys, tyro\nfrom experiments.commands import fit, plot, report\n"
        "for each in (fit, plot, report):\n"
        "    try: tyro.cli(each.Command, args=['--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'jax', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Table of runs" in done.stdout
