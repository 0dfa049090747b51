"""Which cells are folded, and that a check changes nothing."""

from __future__ import annotations

import nbformat
import pytest
import strip_notebooks


def written(folder, *cells):
    path = folder / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


@pytest.mark.parametrize("tag", sorted(strip_notebooks.FOLDED))
def test_a_tagged_cell_is_folded_for_both_readers(tag, tmp_path):
    path = written(tmp_path, nbformat.v4.new_code_cell("1", metadata={"tags": [tag]}), nbformat.v4.new_code_cell("2"))
    assert strip_notebooks.fold(path, check=True)
    first, second = nbformat.read(path, as_version=4).cells
    assert "cellView" not in first.metadata
    assert strip_notebooks.fold(path) and not strip_notebooks.fold(path)
    first, second = nbformat.read(path, as_version=4).cells
    assert first.metadata.cellView == "form" and first.metadata.jupyter.source_hidden
    assert second.metadata == {}


def test_a_cell_without_the_tag_is_opened_again(tmp_path):
    folded = {"cellView": "form", "jupyter": {"source_hidden": True, "outputs_hidden": True}}
    path = written(tmp_path, nbformat.v4.new_code_cell("1", metadata=folded))
    assert strip_notebooks.fold(path)
    assert nbformat.read(path, as_version=4).cells[0].metadata == {"jupyter": {"outputs_hidden": True}}
