"""The house: a floor imports only floors below it, and no room is a junk room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "experiments": {"models", "parallel", "scaling"},
    "models": {"parallel"},
    "parallel": set(),
    "scaling": set(),
}
JUNK = {"utils", "util", "helpers", "helper", "common", "misc"}


def imported(source: str) -> set[str]:
    """Top-level packages that a file imports anywhere in it, lazily or for types too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def violations(floor: str, source: str) -> set[str]:
    return (imported(source) & set(BELOW)) - BELOW[floor] - {floor}


@pytest.mark.parametrize("floor", BELOW)
def test_a_floor_imports_only_below(floor):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): violations(floor, file.read_text()) for file in files}
    assert not {file: names for file, names in wrong.items() if names}


def test_a_violation_is_seen():
    assert violations("scaling", "def f():\n    from models.zoo import get\n") == {"models"}
    assert violations("models", "import os, experiments.cli\n") == {"experiments"}
    assert violations("experiments", "import scaling, models, parallel\n") == set()


def test_no_junk_rooms():
    paths = [path for floor in (*BELOW, "tests") for path in (ROOT / floor).rglob("*.py")]
    assert not [path for path in paths if JUNK & {path.stem, *path.relative_to(ROOT).parts}]
