"""`scaling models` lists, prints sizes and ladders, and refuses what it cannot mean."""

import json

import pytest

from experiments.cli import main
from models import zoo


def run(capsys, *arguments):
    status = main(["models", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_list_names_every_family_and_published_size(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    for name in (*zoo.FAMILIES, *zoo.PUBLISHED):
        assert name in out


def test_a_published_size_has_its_published_parameters(capsys):
    status, out, _ = run(capsys, "gpt2-xl", "--json")
    (row,) = json.loads(out)
    assert (status, row["params"], row["width"], row["depth"]) == (0, 1_557_611_200, 1600, 48)
    assert row["flops_per_token_6n"] == 6 * row["params"]
    assert "1.558B" in run(capsys, "gpt2-xl")[1]


def test_a_ladder_runs_between_the_sizes_asked_for(capsys):
    _, out, _ = run(
        capsys, "llama", "--params", "1e6", "1e8", "--count", "5", "--vocab", "1024", "--length", "256", "--json"
    )
    sizes = [row["params"] for row in json.loads(out)]
    assert len(sizes) == 5
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(1e6, rel=0.15)
    assert sizes[-1] == pytest.approx(1e8, rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lama"], "did you mean 'llama'?"),
        (["llama"], "say how large with --params"),
        (["--params", "1e6"], "name the family of the ladder"),
        (["gpt2-xl", "--params", "1e6", "1e8"], "no family of architectures is called 'gpt2-xl'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, arguments, said):
    status, _, error = run(capsys, *arguments)
    assert status == 1
    assert said in error
    assert error.count("\n") == 1
