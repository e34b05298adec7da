"""`scaling audit`, `plan` and `compare` as a person meets them."""

import json
import sys
from pathlib import Path

import pytest

from experiments.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "scaling"))
from tables import isoflop_table


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for seed, name in enumerate(("old.csv", "new.csv")):
        isoflop_table(seed=seed, noise=0.004).rename(columns={"params": "N", "flops": "C"}).to_csv(
            folder / name, index=False
        )
    return folder / "old.csv", folder / "new.csv"


MAPPED = ("--params", "N", "--resamples", "40")


def shown(capsys, *arguments):
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def test_audit(paths, capsys):
    asked = ("audit", paths[0], *MAPPED, "--flops", "C", "--laws", "chinchilla", "kaplan-n")
    assert shown(capsys, *asked).startswith("chinchilla predicts best")
    found = json.loads(shown(capsys, *asked, "--json"))
    assert found["ranking"][0]["law"] == "chinchilla"


def test_plan(paths, capsys):
    asked = ("plan", paths[0], *MAPPED, "--flops-column", "C", "--flops", "1e12", "4e12")
    text = shown(capsys, *asked, "--next", "2", "--budget", "1e12", "--target", "loss")
    assert text.startswith("At 4e+12 FLOPs: N* = ")
    assert "Next runs" in text
    found = json.loads(shown(capsys, *asked, "--memory", "2e4", "--json"))
    assert found["allocations"][-1]["params"]["value"] == pytest.approx(1e4)


def test_compare(paths, capsys):
    asked = ("compare", *paths, *MAPPED, "--flops-column", "C")
    assert "p(new better)" in shown(capsys, *asked)
    found = json.loads(shown(capsys, *asked, "--flops", "2e11", "--names", "a", "b", "--json"))
    assert [each["flops"] for each in found["budgets"]] == [2e11]
    assert found["names"] == ["a", "b"]
    same = ("compare", paths[0], paths[0], *MAPPED, "--flops-column", "C", "--where-first", "C < 4e11")
    assert "first" in shown(capsys, *same, "--where-second", "C < 9e11")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("audit", "nowhere.csv"), "nowhere.csv"),
        (("audit", "TABLE", "--laws", "chincilla", *MAPPED), "did you mean 'chinchilla'?"),
        (("plan", "TABLE", *MAPPED), "such as --flops 1e24"),
        (("plan", "TABLE", *MAPPED, "--flops", "1e12", "--next", "3"), "say what they may cost together"),
        (("plan", "TABLE", *MAPPED, "--flops", "1e12", "--at", "width"), "NAME=NUMBER, not 'width'"),
        (("compare", "TABLE", "nowhere.csv", *MAPPED), "nowhere.csv"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, said, paths, capsys):
    assert main([str(paths[0]) if each == "TABLE" else each for each in arguments]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
