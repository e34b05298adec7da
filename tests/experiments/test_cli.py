"""The command line as a person meets it: help, mistakes answered in one line, dry runs that train nothing."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from experiments.cli import COMMANDS, main
from experiments.commands.options import ModelOptions
from parallel.distributed import start
from parallel.ending import AGAIN


def fails(capsys, *arguments):
    """Exit status and standard error of a mistake, which is one line and no traceback."""
    status = main(arguments)
    error = capsys.readouterr().err
    assert status != 0
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error
    return error


def test_overview_names_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_opens_with_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: scaling {name}" in shown
    assert len(shown.splitlines()) > 10


def test_help_imports_nothing_heavy():
    code = "import sys; from experiments.cli import main; main(['--help']); print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = shown.splitlines()[-1]
    assert "'experiments.cli'" in loaded
    assert not [name for name in ("jax", "flax", "orbax", "numpy", "tyro") if f"'{name}'" in loaded]


def test_a_reader_who_has_seen_enough_is_no_error():
    code = "import sys; from experiments.cli import main; sys.exit(main(['train', '--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "--model.family", "lama"], "did you mean 'llama'?"),
        (["train", "--data.text", "a.txt", "--data.tfds", "b"], "give one of --text and --tfds"),
        (["train", "--data.text", "nowhere/*.txt"], "nowhere/*.txt"),
        (["fit", "nowhere.csv"], "nowhere.csv"),
        (["models", "lama"], "llama"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
    assert said in fails(capsys, *arguments)


def test_experts_are_options_of_families_that_have_them():
    sizes = dict(vocab=64, length=16)
    built = ModelOptions(family="mixtral", params=1e5, experts=4, chosen=1, capacity=1.5).build(**sizes)
    parts = built.blocks[0].feedforward
    assert (parts.count, parts.chosen, parts.capacity) == (4, 1, 1.5)
    for wrong, said in ((dict(family="mixtral", experts=2, chosen=3), "3 of 2"), (dict(experts=4), "no setting 'exp")):
        with pytest.raises(ValueError, match=said):
            ModelOptions(**wrong).build(**sizes)


def test_an_option_that_does_not_exist_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--modl.params", "10"])
    assert exit.value.code == 2
    shown = capsys.readouterr()
    assert "--model.params" in shown.out + shown.err


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    """A ValueError from a library is not a message for the user: hiding it would hide a bug."""
    import experiments.commands.models as room

    monkeypatch.setattr(room.Command, "__call__", lambda self: int("not a number"))
    with pytest.raises(ValueError, match="not a number"):
        main(["models"])


def test_what_may_pass_has_a_status_of_its_own(monkeypatch, capsys):
    """By which launchers start a run again: a peer that is gone, and a coordinator that does not answer."""
    import experiments.commands.models as room

    def lost(self):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection closed by peer")

    with monkeypatch.context() as patch:
        patch.setattr(room.Command, "__call__", lost)
        assert main(["models"]) == AGAIN
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        "scaling models: another process, the network or a device was lost; the same command goes on from here"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "RESTARTED_FOR_CPU": 1,
        "COORDINATOR": f"127.0.0.1:{port}",
        "PROCESSES": 2,
        "PROCESS": 1,
    }.items():
        monkeypatch.setenv(f"SCALING_{name}", str(value))
    monkeypatch.setitem(start.__kwdefaults__, "patience", 0.2)
    assert main(["train"]) == AGAIN
    assert "did not answer within 0 s" in capsys.readouterr().err
    monkeypatch.setenv("SCALING_PROCESS", "2")
    assert main(["train"]) == 1


def test_a_pipe_that_breaks_is_a_reader_that_has_left_or_the_network(monkeypatch, capsys):
    """The one ends the command well, the other is worth another start."""
    import experiments.commands.models as room

    with subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 0

    def broken(self):
        raise BrokenPipeError("the other end of a socket")

    monkeypatch.setattr(room.Command, "__call__", broken)
    assert main(["models"]) == AGAIN
    assert "was lost" in capsys.readouterr().err


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i} says that {i} times {i} is {i * i}." for i in range(2000)))
    return path


def test_dry_runs_show_runs_and_train_nothing(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
    common = ["--data.text", str(text), "--data.tokenizer", "bytes", "--data.length", "32"]
    sweep = ["--budgets", "5e9", "1e10", "--sizes", "3", "--tokens-per-param", "2", "60"]
    where = ["--output", str(tmp_path / "runs" / "s"), "--dry-run"]
    assert main(["sweep", *sweep, *common, *where]) == 0
    shown = capsys.readouterr().out
    assert "6 runs" in shown
    assert "FLOPs in all" in shown
    assert not (tmp_path / "runs" / "s").exists()

    train = ["--steps", "7", "--model.params", "2e4", "-o", str(tmp_path / "runs"), "--dry-run"]
    assert main(["train", *train, *common]) == 0
    assert "1 runs" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["data"]


def test_a_budget_too_small_for_the_smallest_model(text, tmp_path, capsys):
    common = ["--data.text", str(text), "--data.tokenizer", "bytes", "--data.length", "32", "--dry-run"]
    error = fails(capsys, "sweep", "--budgets", "1e5", *common, "--output", str(tmp_path / "runs" / "s"))
    assert "budget 1e+05" in error
    assert "smallest decoder" in error
    error = fails(capsys, "sweep", "--budgets", "1e9", "-2e9", *common, "--output", str(tmp_path / "runs" / "s"))
    assert "--budgets 1e+09 -2e+09: FLOPs are more than 0" in error


@pytest.mark.parametrize("length", [("--steps", "0"), ("--tokens", "-5"), ("--flops", "inf")])
def test_a_run_of_no_length(length, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
    common = ["--data.text", str(text), "--data.tokenizer", "bytes", "--data.length", "32", "-o", str(tmp_path)]
    assert f"{length[0]} is {length[1]} and must be more than 0" in fails(capsys, "train", *common, *length)


def test_an_output_folder_that_cannot_be_written(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
    common = ["--data.text", str(text), "--data.tokenizer", "bytes", "--data.length", "32", "--steps", "3"]
    error = fails(capsys, "train", *common, "-o", str(text / "runs"))  # below a file
    assert str(text) in error
