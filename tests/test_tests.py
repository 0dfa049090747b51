"""The tests themselves: their folders are the package's rooms, and what several of them use is in no test."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "snows_core"
FILES = sorted(TESTS.rglob("*.py"))


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(TESTS)) for file in FILES])
def test_no_test_is_imported(file):
    assert not {name for name in imported(file) if name.split(".")[-1].startswith("test_")}


def test_folders_mirror_the_rooms():
    rooms = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert {file.parent.name for file in TESTS.glob("*/test_*.py")} - {"benchmarks"} <= rooms
