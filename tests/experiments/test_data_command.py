"""`scaling data` prepares rows and shows them."""

import numpy as np
import pytest
import tyro

from experiments.commands.data import Command


def run(capsys, *arguments):
    status = tyro.cli(Command, args=[str(argument) for argument in arguments])()
    return status, capsys.readouterr().out


def test_prepares_text_and_shows_the_folder_again(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph {i}: so it goes, {i * i}." for i in range(300)))
    status, made = run(capsys, "--text", tmp_path / "*.txt", "--vocab", "300", "--length", "16", "-o", tmp_path / "out")
    assert status == 0
    (folder,) = (path for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    status, shown = run(capsys, folder)
    assert status == 0
    for output in (made, shown):
        for fact in ("documents", "held out", "bytes / token", "bpe of 300", "16 tokens, seed 0", "fingerprint"):
            assert fact in output
        assert folder.name.rsplit("-", 1)[1] in output
        assert "row 0" in output
        assert "par" in output.partition("row 0")[2]  # decoded


@pytest.mark.parametrize("arguments", [[], ["--embedded", "--text", "a.txt"]])
def test_one_source_must_be_named(capsys, arguments):
    sources = "--embedded, --text, --sequences, --tfds, --labelled, --pairs, --images and --captioned"
    with pytest.raises(ValueError, match=f"with one of {sources}, not"):
        run(capsys, *arguments)


def test_a_folder_and_a_source_contradict(capsys, tmp_path):
    with pytest.raises(ValueError, match="not both"):
        run(capsys, tmp_path, "--embedded")


def test_pairs_and_images_are_shown(tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text("".join(f"one {n}\tuno {n}\n" for n in range(80)))
    status, shown = run(
        capsys, "--pairs", tmp_path / "pairs.tsv", "--tokenizer", "bytes", "--length", "16", "-o", tmp_path / "out"
    )
    assert status == 0
    for fact in ("16 tokens, and 16 of their partner", "bytes of 260", "o|n|e| "):
        assert fact in shown
    np.savez(tmp_path / "a.npz", images=np.arange(1280, dtype=np.uint16).astype(np.uint8).reshape(80, 4, 4),
             labels=np.arange(80) % 2)  # fmt: skip
    status, shown = run(capsys, "--images", tmp_path / "a.npz", "--held-out", "0.3", "-o", tmp_path / "out")
    assert status == 0
    for fact in ("an image of 4 x 4 x 1", "2: 0, 1", "sha256"):
        assert fact in shown
    assert "row 0" not in shown
