"""One public address: badges, links and install cells follow it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import links
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture
def checkout(tmp_path):
    """Return a small checkout with one notebook that points to another address."""
    for name in ("pyproject.toml", "CITATION.cff", "snows_core/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    slug, _ = links.address()
    (tmp_path / "README.md").write_text(f"[code](https://github.com/{slug}) [paper](https://github.com/a/b)\n")
    text = links.badges("old/place", "v0.0.1", "notebooks/01_a.ipynb") + "\n# Title\n\n[next](02_b.ipynb#part)\n"
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(text),
            nbformat.v4.new_code_cell("", metadata={"tags": ["install"]}),
            nbformat.v4.new_markdown_cell("[source](../README.md), $x^2$"),
        ]
    )
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "01_a.ipynb")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# B\n\n## part")]),
        tmp_path / "notebooks" / "02_b.ipynb",
    )
    return tmp_path


def test_every_file_of_this_checkout_has_the_one_address():
    assert links.update(ROOT, check=True) == [], "run: python tools/links.py"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.parent.name == "notebooks"], ids=lambda p: p.stem)
def test_notebooks_have_badges_and_an_install_cell(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    slug, tag = links.address()
    assert links.badges(slug, tag, f"notebooks/{path.name}") in "".join(cells[0]["source"])
    if path.stem != "index":
        assert sum("install" in cell["metadata"].get("tags", []) for cell in cells) == 1


def test_links_are_rewritten_once_and_then_agree(checkout):
    slug, tag = links.address(checkout)
    assert links.update(checkout, check=True) == ["notebooks/01_a.ipynb"]
    links.update(checkout)
    cells = json.loads((checkout / "notebooks/01_a.ipynb").read_text())["cells"]
    assert links.badges(slug, tag, "notebooks/01_a.ipynb") in "".join(cells[0]["source"])
    assert f"git+https://github.com/{slug}@{tag}" in "".join(cells[1]["source"])
    assert links.update(checkout, check=True) == []


def test_a_new_address_reaches_every_link_but_those_of_others(checkout):
    old, tag = links.address(checkout)
    project = checkout / "pyproject.toml"
    project.write_text(project.read_text().replace(f"github.com/{old}", "github.com/new/name"))
    assert set(links.update(checkout, old=old)) == {"README.md", "CITATION.cff", "notebooks/01_a.ipynb"}
    assert (
        checkout / "README.md"
    ).read_text() == "[code](https://github.com/new/name) [paper](https://github.com/a/b)\n"
    assert 'repository-code: "https://github.com/new/name"' in (checkout / "CITATION.cff").read_text()
    assert links.rewritten(f"https://github.com/{old}/blob/v0/x.py", "new/name", tag, old) == (
        f"https://github.com/new/name/blob/{tag}/x.py"
    )


def test_the_install_cell_does_nothing_where_the_package_is(tmp_path):
    code = links.INSTALL.format(slug="no/where", tag="v0")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
