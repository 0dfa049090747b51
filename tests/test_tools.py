"""One public address: badges, links and install cells follow it; the static site has no broken link."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import build_site
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


def test_the_site_links_its_pages_and_finds_broken_links(checkout):
    assert build_site.build(checkout) == []
    page = (checkout / "site/01_a.html").read_text()
    slug, tag = links.address(checkout)
    assert 'href="02_b.html#part"' in page
    assert f'href="https://github.com/{slug}/blob/{tag}/README.md"' in page
    assert (checkout / "site/index.html").is_file()
    (checkout / "notebooks/02_b.ipynb").unlink()
    assert build_site.build(checkout) == ["01_a.html: 02_b.html#part"]


@pytest.mark.parametrize(
    "broken", ["03_c.ipynb", "../no-such-file.md", "02_b.ipynb#no-such-part", "#no-such-part", "no-picture.png"]
)
def test_the_site_finds_every_kind_of_broken_link(checkout, broken):
    path = checkout / "notebooks/01_a.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.append(nbformat.v4.new_markdown_cell(f"[words]({broken})"))
    nbformat.write(notebook, path)
    assert build_site.build(checkout) == [f"01_a.html: {broken.replace('.ipynb', '.html')}"]


@pytest.mark.parametrize("kind", ["blob", "colab", "binder"])
def test_the_site_finds_addresses_of_files_that_are_not_in_the_repository(checkout, kind):
    slug, tag = links.address(checkout)
    before = {
        "blob": f"https://github.com/{slug}/blob/{tag}/",
        "colab": f"https://colab.research.google.com/github/{slug}/blob/{tag}/",
        "binder": f"https://mybinder.org/v2/gh/{slug}/{tag}?urlpath=lab/tree/",
    }[kind]
    path = checkout / "notebooks/02_b.ipynb"
    notebook = nbformat.read(path, 4)
    text = f"[there]({before}notebooks/02_b.ipynb) [gone]({before}notebooks/gone.ipynb) [other](https://example.com/x)"
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, path)
    assert build_site.build(checkout) == [f"02_b.html: {before}notebooks/gone.ipynb"]


def test_every_page_of_the_site_leads_to_its_neighbours_and_solutions(checkout):
    solutions = checkout / "notebooks/solutions"
    solutions.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A")]), solutions / "01_a.ipynb")
    assert build_site.build(checkout) == []
    bars = {
        name: (checkout / "site" / name).read_text(encoding="utf-8").split('<nav class="site">')[1].split("</nav>")[0]
        for name in ("01_a.html", "02_b.html", "solutions/01_a.html")
    }
    assert 'href="index.html"' in bars["01_a.html"] and 'href="02_b.html">B →' in bars["01_a.html"]
    assert 'href="solutions/01_a.html" class="last">Solutions' in bars["01_a.html"]
    assert 'href="01_a.html">← Title' in bars["02_b.html"] and "Solutions" not in bars["02_b.html"]
    assert 'href="../index.html"' in bars["solutions/01_a.html"]
    assert 'href="../01_a.html" class="last">The notebook' in bars["solutions/01_a.html"]
