"""The list of mistakes in hand_made_mutants.yaml is true, and each of them is noticed by the test that it names."""

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from mutants import copy_of_the_project

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "snows_core"
MUTANTS = yaml.safe_load((TESTS / "hand_made_mutants.yaml").read_text(encoding="utf-8"))
SECONDS = 300  # until a test that hangs is ended; all take seconds


def mutated(mutant, text):
    """Return the text of a file with the mistake in it."""
    return text.replace(mutant["replace"], mutant["by"])


def test_every_room_that_the_numbers_come_from_has_mistakes_in_it():
    rooms = {mutant["file"].split("/")[0] for mutant in MUTANTS.values()}
    assert len(MUTANTS) >= 20 and rooms >= {"solvers", "masks", "loss", "distributed", "sweep", "files", "export"}
    inner = Counter(mutant["file"].rpartition("/")[0] for mutant in MUTANTS.values())
    assert all(inner[f"export/{folder.parent.name}"] >= 2 for folder in (PACKAGE / "export").glob("*/__init__.py"))


@pytest.mark.parametrize("name", MUTANTS)
def test_the_text_to_replace_stands_once_in_its_file_and_the_test_is_there(name):
    mutant = MUTANTS[name]
    assert mutant.keys() == {"file", "replace", "by", "breaks", "killed_by"} and mutant["breaks"].endswith(".")
    text = (PACKAGE / mutant["file"]).read_text(encoding="utf-8")
    assert text.count(mutant["replace"]) == 1
    assert ast.dump(ast.parse(mutated(mutant, text))) != ast.dump(ast.parse(text))
    file, test = mutant["killed_by"].split("::")
    tree = ast.parse((TESTS.parent / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def run(project, tests):
    """Run tests of a copy of the project on the package beside them."""
    found = {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, **found}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a copy of the project, on which all tests that the list names pass."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("project"))
    done = run(folder, sorted({mutant["killed_by"] for mutant in MUTANTS.values()}))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_mistake_is_noticed(project, name):
    mutant = MUTANTS[name]
    file = project / "snows_core" / mutant["file"]
    text = file.read_text(encoding="utf-8")
    file.write_text(mutated(mutant, text), encoding="utf-8")
    try:
        done = run(project, [mutant["killed_by"]])
    finally:
        file.write_text(text, encoding="utf-8")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-3000:] + done.stderr[-1000:]
