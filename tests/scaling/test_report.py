"""Figures, the report, and the three commands that show a table of runs."""

import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import tyro
from matplotlib.colors import to_rgb
from tables import TRUTH, curves_of, isoflop_table

from experiments.commands import fit as fit_command
from experiments.commands import plot as plot_command
from experiments.commands import report as report_command
from scaling import figures, report, runs
from scaling.held_out import predict_held_out
from scaling.study import study

TABLE = isoflop_table()


@pytest.fixture(scope="module")
def made():
    return study(TABLE, curves_of(TABLE), resamples=100)


@pytest.fixture(scope="module")
def page(made):
    return report.html(made, predict_held_out(made, TABLE), title="Tiny <decoders>", command="scaling report runs.csv")


@pytest.fixture
def folder(tmp_path):
    runs.write(TABLE, tmp_path / "runs.csv")
    runs.write(curves_of(TABLE), tmp_path / "curves.csv")
    return tmp_path


def run(command, *arguments):
    return tyro.cli(command.Command, args=[str(argument) for argument in arguments])()


def test_labels_name_units_and_ticks_do_not_overlap(made):
    held = predict_held_out(made, TABLE)
    for draw in figures.FIGURES.values():
        figure = draw(made, held)
        figure.canvas.draw()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                shown = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_text()]
                boxes = [text.get_window_extent() for text in shown if text.get_visible()]
                assert not any(one.overlaps(other) for one, other in pairwise(boxes)), draw.__name__
                assert not [tick for tick in axis.get_minor_ticks() if tick.label1.get_text()]
        said = " ".join(axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes)
        assert "nats per token" in said or "FLOPs" in said


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK])
def test_colours_stand_out_from_the_paper_in_grey(theme):
    grey = lambda colour: sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(colour), strict=True))  # noqa: E731
    for colour in (theme.ink, theme.accent, *theme.approaches):
        assert abs(grey(colour) - grey(theme.paper)) > 0.3


def test_a_study_with_missing_approaches_is_drawn_and_reported(monkeypatch):
    monkeypatch.setattr(report, "render", lambda figure, kind: b"drawn, not written")
    few = TABLE[TABLE["params"] > 3e4].assign(role="sweep").reset_index(drop=True)
    made = study(few, resamples=50)
    assert made.missing
    assert "could not be fitted" in report.html(made)


def test_the_report_stands_alone(page):
    assert not re.findall(r"(?:src|href|srcset|url\()\s*=?\s*['\"]?(?!data:)[a-z]+:", page)
    assert "http" not in page
    assert "<script" not in page
    assert "Tiny &lt;decoders&gt;" in page
    pictures = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 2 * len(figures.FIGURES)
    assert all(b"<svg" in base64.b64decode(each) for each in pictures)
    assert page.count("alt='") == len(figures.FIGURES)


def test_the_report_shows_the_numbers(made, page):
    (held,) = predict_held_out(made, TABLE)
    a, _ = made.exponents()[made.choice]
    text = re.sub(r"<[^>]+>", "", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
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
        assert "bootstrap" in each["method"]


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


def test_plot_and_report_write_whole_files_and_use_the_curves_beside_the_table(folder, capsys):
    assert run(plot_command, folder / "runs.csv", "-o", folder / "figures", "--resamples", 50) == 0
    files = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in figures.FIGURES for kind in ("png", "svg")}
    assert all(data.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in data for name, data in files.items())
    assert run(report_command, folder / "runs.csv", "-o", folder / "report.html", "--resamples", 50) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "training curves of 24 runs" in page
    assert "scaling report runs.csv -o report.html --resamples 50" in page
    assert str(folder) not in page


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
