"""`scaling fit` at the command line: what it prints, the JSON object, and how it takes other people's tables."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments.cli import main
from scaling import laws

TRUTH = {"E": 1.7, "A": 420.0, "B": 1900.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixty runs under other names, sizes in millions, three rows a model."""
    generator = np.random.default_rng(3)
    params, tokens = 10 ** generator.uniform(7.5, 10, 60), 10 ** generator.uniform(9, 11.5, 60)
    loss = laws.CHINCHILLA({"params": params, "tokens": tokens}, TRUTH) * np.exp(0.003 * generator.standard_normal(60))
    frame = pd.DataFrame({"size (M)": params / 1e6, "seen": tokens, "final": loss, "model": np.arange(60) // 3})
    path = tmp_path_factory.mktemp("table") / "theirs.csv"
    frame.assign(unique=tokens, rubbish=1.0).to_csv(path, index=False)
    return path


NAMES = ("--params", "size (M) * 1e6", "--tokens", "seen", "--loss", "final", "--resamples", "200")


def run(capsys, *arguments):
    status = main(["fit", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_one_object_with_what_the_help_promises(capsys, table):
    status, out, _ = run(capsys, table, *NAMES, "--json")
    found = json.loads(out)
    assert status == 0
    for key in ("law", "columns", "parameters", "intervals", "objective", "certificate", "warnings"):
        assert key in found
    assert found["columns"] == {"params": "size (M) * 1e6", "tokens": "seen"}
    for name, true in TRUTH.items():
        interval = found["intervals"][name]
        assert interval["low"] < true < interval["high"]
        assert "95%" in interval["method"]
    assert found["certificate"]["passed"]


def test_the_page_answers_first_and_gives_verdicts_on_request(capsys, table):
    _, plain, _ = run(capsys, table, *NAMES)
    assert plain.startswith("chinchilla on 60 runs: certified optimum")
    assert "verdict" not in plain
    _, judged, _ = run(capsys, table, *NAMES, "--identify", "--least-squares")
    assert "beta is identified" in judged
    assert "least squares" in judged


def test_clusters_widen_what_shared_noise_leaves(capsys, table):
    """Each model measured three times near one point, with one noise: not sixty runs but twenty."""
    alone = pd.read_csv(table).drop_duplicates("model")
    noise = np.exp(0.01 * np.random.default_rng(1).standard_normal(len(alone)))
    path = table.with_name("clustered.csv")
    copies = [alone.assign(seen=alone["seen"] * more, final=alone["final"] * noise) for more in (1.0, 1.01, 1.02)]
    pd.concat(copies).to_csv(path, index=False)
    widths = []
    for more in ((), ("--clusters", "model")):
        found = json.loads(run(capsys, path, *NAMES, "--json", "--intervals", "bootstrap", *more)[1])
        widths.append(found["intervals"]["alpha"]["high"] - found["intervals"]["alpha"]["low"])
    assert widths[1] > 1.3 * widths[0]


def test_other_columns_are_mapped_and_laws_listed(capsys, table):
    status, out, _ = run(capsys, table, *NAMES, "--law", "data-constrained", "--map", "unique_tokens=unique", "--json")
    assert status == 0
    assert json.loads(out)["law"] == "data-constrained"
    listed = run(capsys, table, "--law", "?")[1]
    for name in laws.LAWS:
        assert name in listed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--law", "chinchila"), "did you mean 'chinchilla'?"),
        (("--clusters", "modell"), "did you mean 'model'?"),
        (("--weights", "rubish"), "did you mean 'rubbish'?"),
        (("--map", "unique_tokens"), "--map takes NAME=COLUMN"),
        (("--delta", "-1"), "delta must be a positive log residual"),
        (("--law", "data-constrained"), "no column 'unique_tokens'"),
        (("--where", "final < 0"), "no row of 60"),
    ],
)
def test_mistakes_are_one_line(capsys, table, arguments, said):
    status, _, error = run(capsys, table, *NAMES, *arguments)
    assert status == 1
    assert said in error
    assert error.count("\n") == 1
