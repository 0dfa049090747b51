"""Pictures of exercises are those of the solutions, and each one that a notebook shows is there."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import exercise_pictures
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]


def solution(folder: Path, *parts: str | bytes) -> Path:
    """Write a notebook of headings (text) and of cells that show a picture (bytes)."""
    cells = []
    for part in parts:
        if isinstance(part, str):
            cells.append(nbformat.v4.new_markdown_cell(part))
            continue
        data = {"image/png": base64.b64encode(part).decode()}
        cells.append(nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data)]))
    path = folder / "notebooks" / "solutions" / "01_x.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_the_first_picture_under_a_heading_is_taken(tmp_path):
    path = solution(tmp_path, b"before", "### Exercise 1 · A", b"one", b"other", "text", "### Exercise 2 · B", b"two")
    assert exercise_pictures.pictures(path) == {"exercise-1": b"one", "exercise-2": b"two"}


def test_pictures_are_written_compared_and_removed(tmp_path):
    solution(tmp_path, "### Exercise 1 · A", b"one", "### Exercise 2 · B", b"two")
    folder = "figures/exercises/01_x"
    both = [f"{folder}/exercise-1.png", f"{folder}/exercise-2.png"]
    assert exercise_pictures.update(tmp_path, [], check=True) == both and not (tmp_path / folder).exists()
    assert exercise_pictures.update(tmp_path, ["02"]) == []
    assert exercise_pictures.update(tmp_path, ["01"]) == both and exercise_pictures.update(tmp_path, []) == []
    solution(tmp_path, "### Exercise 1 · A", b"new")
    assert exercise_pictures.update(tmp_path, []) == both
    assert (tmp_path / both[0]).read_bytes() == b"new" and not (tmp_path / both[1]).exists()


def test_the_committed_pictures_are_those_of_the_solutions():
    assert exercise_pictures.update(ROOT, [], check=True) == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_each_exercise_shows_what_is_expected(path):
    text = path.read_text(encoding="utf-8")
    exercises = set(re.findall(r"### Exercise (\d+)", text))
    shown = set(re.findall(r"page\.show_expected\(\\?[\"']exercise-(\d+)", text))
    assert exercises and shown == exercises
    assert all((ROOT / f"figures/exercises/{path.stem}/exercise-{number}.png").is_file() for number in shown)
    assert "attachment:" not in text  # Colab shows none
