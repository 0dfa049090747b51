"""What contributors are given works: the pre-commit hooks, nbstripout's options, nbdime's attributes, nbval's marks."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MARK = "# NBVAL_CHECK_OUTPUT"


@pytest.fixture(scope="module")
def hooks() -> dict[str, dict]:
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return {hook["id"]: hook for repository in content["repos"] for hook in repository["hooks"]}


def strip(*files: Path) -> None:
    """Strip notebooks as `make tidy` does."""
    command = [sys.executable, str(ROOT / "tools/strip_notebooks.py"), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run_hook(hook: dict) -> None:
    """Run a hook's command as pre-commit does, with the programs of this environment."""
    program, *options = shlex.split(hook["entry"])
    beside = Path(sys.executable).with_name(program)
    found = sys.executable if program == "python" else str(beside) if beside.is_file() else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed here")
    done = subprocess.run([found, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hooks_need_no_network_and_name_what_they_do(hooks):
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repository["repo"] for repository in content["repos"]} == {"local"}
    assert {"ruff-check", "ruff-format", "nbstripout", "links"} <= hooks.keys()
    assert all(hook["language"] == "system" and hook["name"] for hook in hooks.values())


def test_nbstripout_keeps_outputs_and_drops_what_editors_leave(tmp_path):
    output = nbformat.v4.new_output("stream", name="stdout", text="kept\n")
    noise = {"execution": {"iopub.execute_input": "2026-01-01"}, "papermill": {"duration": 1.0}, "collapsed": True}
    cell = nbformat.v4.new_code_cell(
        "1 + 1", outputs=[output], execution_count=3, metadata={"tags": ["parameters"], **noise}
    )
    notebook = nbformat.v4.new_notebook(
        cells=[cell],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
            "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
            "papermill": {"duration": 1.0},
            "vscode": {"interpreter": "x"},
        },
    )
    path = tmp_path / "noisy.ipynb"
    nbformat.write(notebook, path)
    checked = [sys.executable, str(ROOT / "tools/strip_notebooks.py"), "--check", str(path)]
    assert subprocess.run(checked, capture_output=True).returncode == 1
    strip(path)
    assert subprocess.run(checked, capture_output=True).returncode == 0
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after["metadata"].keys() & {"widgets", "papermill", "vscode"} == set()
    assert after["metadata"]["kernelspec"]["name"] == "python3"
    (left,) = after["cells"]
    assert left["metadata"] == {"tags": ["parameters"]}
    assert left["execution_count"] == 3 and left["outputs"][0]["text"] == ["kept\n"] and left["id"] == cell["id"]


def test_committed_notebooks_pass_the_hook_unchanged(hooks, tmp_path):
    copies = {path: tmp_path / path.parent.name / path.name for path in NOTEBOOKS}
    for path, copy in copies.items():
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    strip(*copies.values())
    run_hook(hooks["nbstripout"])
    for path, copy in copies.items():
        assert json.loads(copy.read_text(encoding="utf-8")) == json.loads(path.read_text(encoding="utf-8")), path


def test_links_hook_passes_here_and_sees_every_file_that_it_checks(hooks):
    import re

    run_hook(hooks["links"])
    pattern = re.compile(hooks["links"]["files"])
    checked = ("README.md", "CITATION.cff", "pyproject.toml", "notebooks/index.ipynb", "notebooks/solutions/01_a.ipynb")
    assert all(pattern.search(name) for name in checked)


def test_notebooks_are_compared_and_merged_by_nbdime():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        ["git", "-C", str(ROOT), "check-attr", "diff", "merge", "eol", "--", "notebooks/index.ipynb"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split(": ")[1:] for line in done.stdout.splitlines())
    assert found == {"diff": "jupyternotebook", "merge": "jupyternotebook", "eol": "lf"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_cells_marked_for_nbval_begin_with_the_mark_and_print_text_alone(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code" or MARK not in cell.source:
            continue
        assert cell.source.startswith(MARK), cell.source[:100]
        assert cell.outputs, f"nothing to compare: {cell.source[:100]}"
        for output in cell.outputs:
            assert output.output_type == "stream" and output.name == "stdout", cell.source[:100]


def test_some_cells_are_marked_for_nbval():
    assert any(MARK in path.read_text(encoding="utf-8") for path in NOTEBOOKS)
