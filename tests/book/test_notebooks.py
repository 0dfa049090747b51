"""The book itself: every notebook runs at the default profile, and its numbers are those of figures/expected.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snows_core.book.checks import check_after, check_before, find_notebooks, read_notebook
from snows_core.book.expected import FAILED, compare, load_expected
from snows_core.book.page import DEFAULT_PROFILE, figure_dir
from snows_core.book.profiles import load_profile, profiles_of
from snows_core.book.reproduce import reproduce

ROOT = Path(__file__).resolve().parents[2]
FOLDER, FIGURES = ROOT / "notebooks", ROOT / "figures"
NUMBERED = find_notebooks(FOLDER) if list(FOLDER.glob("[0-9][0-9]_*.ipynb")) else []
OTHERS = [p for p in [FOLDER / "index.ipynb", *sorted((FOLDER / "solutions").glob("*.ipynb"))] if p.is_file()]
EXPECTED = load_expected(FIGURES / "expected.yaml")
# The figures of the tests' own profile are not kept.
COMMITTED = [(stem, profile) for stem in EXPECTED for profile in EXPECTED[stem] if profile != "quick"]
MARK = "NBVAL_CHECK_OUTPUT"

numbered = pytest.mark.parametrize("notebook", NUMBERED, ids=[n.stem for n in NUMBERED])

# The smallest sizes at which a notebook shows the same, every cell included; without such a profile its own.
QUICK = "quick"
SIZED = [n for n in NUMBERED if QUICK in profiles_of(n.stem, FOLDER)]
# nbval runs a whole notebook a second time for its few marked cells: one here, the others with the slow tests.
marked = pytest.mark.parametrize(
    "notebook",
    [pytest.param(n, id=n.stem, marks=[] if n.stem[:2] == "01" else pytest.mark.slow) for n in NUMBERED],
)


def run_and_compare(notebook, profile, folder):
    summary = reproduce([notebook.stem], profile, notebooks=FOLDER, figures=folder / "figures", progress=False)
    print(summary.metrics_table().to_string())
    assert not summary.failures


@numbered
def test_runs_and_matches_the_expected_values(notebook, tmp_path):
    profile = QUICK if notebook in SIZED else DEFAULT_PROFILE
    assert len(EXPECTED[notebook.stem][profile]) >= 15, "there is something to compare with"
    run_and_compare(notebook, profile, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", SIZED, ids=[n.stem for n in SIZED])
def test_matches_at_its_full_size(notebook, tmp_path):
    run_and_compare(notebook, DEFAULT_PROFILE, tmp_path)


@marked
def test_nbval_agrees_with_the_marked_cells(notebook, tmp_path):
    """Compare text outputs with the committed ones, where the notebook marks any; numbers are compared above."""
    if MARK not in notebook.path.read_text(encoding="utf-8"):
        pytest.skip(f"no cell of {notebook.stem} is marked {MARK}")
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "--nbval-lax",
            "--nbval-current-env",
            "--nbval-cell-timeout=600",
            str(notebook.path),
        ],
        cwd=ROOT,
        env={**environment, "SNOWS_FIGURES": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("path", OTHERS, ids=[p.stem if p.stem == "index" else f"solutions/{p.stem}" for p in OTHERS])
def test_index_and_solutions_run(path, tmp_path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    monkeypatch.setenv("SNOWS_FIGURES", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    papermill.execute_notebook(
        str(path),
        str(tmp_path / path.name),
        kernel_name="python3",
        cwd=str(path.parent),
        progress_bar=False,
        execution_timeout=600,
    )


@pytest.mark.parametrize("path", [n.path for n in NUMBERED] + OTHERS, ids=lambda p: p.stem)
def test_reads_well_as_committed(path):
    assert path.stat().st_size < 500_000
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in content["metadata"] and "papermill" not in content["metadata"]
    for number, cell in enumerate(content["cells"], start=1):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        assert cell["execution_count"] is not None, f"cell {number} was not run"
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"cell {number} ended with an error"
            assert "image/svg+xml" not in output.get("data", {}), f"cell {number} holds an SVG; use PNG"


@numbered
def test_every_profile_fits_its_notebook(notebook):
    for profile in profiles_of(notebook.stem, FOLDER):
        check_before(notebook, load_profile(notebook.stem, profile, FOLDER).parameters)


def test_profiles_and_solutions_belong_to_a_notebook():
    stems = {notebook.stem for notebook in NUMBERED}
    for path in (FOLDER / "profiles").glob("*"):
        assert path.name.split(".")[0] in stems, path
    numbers = {notebook.number for notebook in NUMBERED}
    for path in (FOLDER / "solutions").glob("*.ipynb"):
        assert read_notebook(path).number in numbers, path


@pytest.mark.parametrize(("stem", "profile"), COMMITTED)
def test_committed_figures_are_those_of_the_expected_values(stem, profile):
    record = check_after(figure_dir(stem, profile, FIGURES), stem, profile, started=0.0)
    table = compare(stem, profile, record["metrics"], EXPECTED[stem][profile])
    assert not table["verdict"].isin(FAILED).any(), table.to_string()
    assert record["provenance"]["versions"]


@numbered
def test_default_metrics_are_expected_and_committed(notebook):
    assert EXPECTED.get(notebook.stem, {}).get("digits"), f"figures/expected.yaml has no row for {notebook.stem}"
