"""The site of a tiny book: formulas, badges, folded cells and search work without a network, broken links are found."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import links
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("sphinx", reason="the extra \"site\" is missing: pip install -e '.[site]'")
import build_site
import site_check
import site_sources
from site_live import add_live_pages

ROOT = Path(__file__).resolve().parent.parent
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a small checkout: a README, a text, two notebooks and the solutions of one."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "snows_core/__init__.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "README.md").write_text(
        "# SNOWS: prune a vision network once, and keep what it knows\n\nA picture: ![dot](figures/dot.png)\n\n"
        "## Two commands\n\n[the book](notebooks/index.ipynb)\n\n## Your own network\n\nWords.\n"
    )
    (root / "figures").mkdir()
    (root / "figures/dot.png").write_bytes(base64.b64decode(DOT))
    badges = links.badges(*links.address(root), "notebooks/01_a.ipynb")
    first = [
        new_markdown_cell(f"{badges}\n\n# Why $K$ matters\n\n| symbol | meaning |\n|---|---|\n| $K$ | steps |\n"),
        new_code_cell("x = 1", metadata={"tags": ["install"]}),
        new_code_cell("1 + 1", outputs=[new_output("display_data", {"image/png": DOT, "text/plain": "a picture"})]),
        new_markdown_cell("<details><summary>Answer</summary>\n\nBecause $x^2 \\ge 0$.\n\n</details>"),
        new_markdown_cell("[next](02_b.ipynb#a-part) [code](../pyproject.toml) [text](guide/faq.md) preconditioning"),
        new_code_cell("say(1)", outputs=[new_output("display_data", {"text/markdown": "It is $\\lambda = 2$."})]),
    ]
    part = [new_markdown_cell("# B\n\n## A part\n\n[back](index.ipynb)")]
    for folder in ("solutions", "browser"):
        (root / "notebooks" / folder).mkdir(parents=True)
    for name, cells in {
        "index": [new_markdown_cell("# The notebooks\n\n[first](01_a.ipynb)")],
        "01_a": first,
        "02_b": part,
        "browser/01_a": [new_markdown_cell("# A in the browser")],
        "solutions/01_a": [new_markdown_cell("# Why $K$ matters\n\n[the notebook](../01_a.ipynb)")],
    }.items():
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(new_notebook(cells=cells, metadata=kernel), root / f"notebooks/{name}.ipynb")
    guide = root / "notebooks/guide"
    guide.mkdir()
    for name in ("faq", "installation", "when_not_to_use_it", "other_tools"):
        (guide / f"{name}.md").write_text(f"# About {name}\n\n[readme](../../README.md)\n")
    for name in ("ARCHITECTURE", "CONTRIBUTING"):
        (root / f"{name}.md").write_text(f"# {name}\n")
    return root


@pytest.fixture(scope="module")
def built(checkout):
    """Return the folder of the built site, and what the build found wrong with it."""
    found = build_site.build(checkout, checkout / "site")
    return checkout / "site", found


def page(built, name: str) -> str:
    return (built[0] / name).read_text(encoding="utf-8")


def test_the_site_is_whole_but_for_the_reference_that_was_not_asked_for(built):
    assert built[1] and all("api/index" in line for line in built[1])
    for name in ("index", "README", "notebooks/01_a", "notebooks/solutions/01_a", "notebooks/guide/faq", "search"):
        assert (built[0] / f"{name}.html").is_file(), name


def test_formulas_are_marked_in_titles_tables_navigation_answers_and_outputs_of_cells(built):
    text = page(built, "notebooks/01_a.html")
    assert site_check.raw_formulas(built[0]) == []
    for pattern in (r"<h1>Why <span class=\"math[^>]*>\\\(K\\\)", r"<td><p><span class=\"math", r"lambda = 2"):
        assert re.search(pattern, text), pattern
    assert re.search(r"<details><summary>Answer</summary>\s*<p>Because <span class=\"math", text)
    navigation = page(built, "index.html").split('class="sidebar-tree"')[1].split("</article>")[0]
    assert re.search(r"Why <span class=\"math[^>]*>\\\(K\\\)", navigation)


def test_every_page_with_a_formula_loads_the_sites_own_mathjax(built):
    sources = re.findall(r'<script[^>]*src="([^"]*mathjax[^"]*)"', page(built, "notebooks/01_a.html"))
    assert sources == ["../_static/mathjax/tex-chtml.js"]
    assert (built[0] / "_static/mathjax/tex-chtml.js").stat().st_size > 100_000
    assert list((built[0] / "_static/mathjax").rglob("*.woff"))


def test_nothing_is_loaded_from_another_host(built, tmp_path):
    assert site_check.foreign_resources(built[0]) == []
    (tmp_path / "a.html").write_text(
        '<link rel="canonical" href="https://b.c/"><script src="https://b.c/x.js"></script><img src="//b.c/x.png">'
        '<style>p { background: url("https://b.c/y.png") }</style><a href="https://b.c">words</a>'
    )
    (tmp_path / "s.css").write_text('@import "https://b.c/z.css"; p { background: url(x.png) }')
    found = ["a.html: https://b.c/x.js", "a.html: //b.c/x.png", "a.html: https://b.c/y.png", "s.css: https://b.c/z.css"]
    assert site_check.foreign_resources(tmp_path) == found


def test_badges_and_pictures_are_files_of_the_site(built):
    text = page(built, "notebooks/01_a.html")
    images = re.findall(r'<img[^>]*src="([^"]+)"', text)
    assert {Path(image).name for image in images} >= {"colab.svg", "binder.svg"} and len(images) == 3
    for image in images:
        assert (built[0] / "notebooks" / image).resolve().is_file(), image
    (shown,) = [image for image in images if image.endswith(".png")]
    assert (built[0] / "notebooks" / shown).read_bytes() == base64.b64decode(DOT)  # so animations stay animated
    assert f"colab.research.google.com/github/{links.address()[0]}" in text


def test_links_lead_to_pages_and_other_files_to_the_repository(built):
    text = page(built, "notebooks/01_a.html")
    slug, tag = links.address()
    assert 'href="02_b.html#a-part"' in text and 'href="guide/faq.html"' in text
    assert f'href="https://github.com/{slug}/blob/{tag}/pyproject.toml"' in text


def test_tagged_cells_are_folded_and_solutions_have_a_name_of_their_own(built):
    text = page(built, "notebooks/01_a.html")
    assert len(re.findall(r'<details class="[^"]*above-input', text)) == 1  # the cell tagged install
    assert "matters: solutions" in re.sub(r"<[^>]+>", "", page(built, "notebooks/solutions/01_a.html"))


def test_the_search_index_holds_the_words_of_texts_and_notebooks(built):
    index = json.loads(page(built, "searchindex.js").removeprefix("Search.setIndex(").removesuffix(")"))
    words = index["terms"] | index["titleterms"]
    assert any(word.startswith("precondit") for word in words) and "surely-not-there" not in words
    assert "notebooks/01_a" in index["docnames"]


def test_every_kind_of_broken_link_is_found(checkout, tmp_path):
    broken = ["03_c.ipynb", "../no-such-file.md", "02_b.ipynb#no-such-part", "#not-here", "no-picture.png"]
    notebook = checkout / "notebooks/01_a.ipynb"
    before = notebook.read_bytes()
    content = nbformat.read(notebook, 4)
    content.cells.append(new_markdown_cell(" ".join(f"{'!' * ('png' in link)}[words]({link})" for link in broken)))
    nbformat.write(content, notebook)
    try:
        found = build_site.build(checkout, tmp_path / "site")
    finally:
        notebook.write_bytes(before)
    for link in broken:
        assert any("01_a" in line and re.split(r"[/#]", link)[-1] in line for line in found), (link, found)


@pytest.mark.parametrize("kind", ["blob", "colab", "binder"])
def test_addresses_of_files_that_are_not_in_the_repository_are_found(checkout, tmp_path, kind):
    slug, tag = links.address(checkout)
    before = {
        "blob": f"https://github.com/{slug}/blob/{tag}/",
        "colab": f"https://colab.research.google.com/github/{slug}/blob/{tag}/",
        "binder": f"https://mybinder.org/v2/gh/{slug}/{tag}?urlpath=lab/tree/",
    }[kind]
    (tmp_path / "a.html").write_text(
        f'<a href="{before}notebooks/02_b.ipynb">there</a><a href="{before}notebooks/gone.ipynb">gone</a>'
        '<a href="https://example.com/x">other</a><a href="b.html">gone, too</a><p id="here"><a href="#here">here</a>'
    )
    assert site_check.broken_links(tmp_path, checkout) == [f"a.html: {before}notebooks/gone.ipynb", "a.html: b.html"]


def test_raw_formulas_are_seen_but_not_those_of_code(tmp_path):
    (tmp_path / "a.html").write_text(
        "<title>On $K$</title><p>Let $x$ be</p><code>$y$</code><pre>$z$</pre><script>$a$</script>"
        '<span class="math">$b$</span><p>5 $ or 7</p>'
    )
    assert site_check.raw_formulas(tmp_path) == ["a.html: $K$", "a.html: $x$"]


def test_attached_pictures_become_files(tmp_path):
    cell = new_markdown_cell("![one](attachment:one.png)", attachments={"one.png": {"image/png": DOT}})
    site_sources.write_attachments(cell, tmp_path / "01_a.ipynb")
    name = re.fullmatch(r"!\[one\]\((.+)\)", cell.source)[1]
    assert (tmp_path / name).read_bytes() == base64.b64decode(DOT)


def test_every_document_of_the_repository_is_in_the_navigation():
    names = {path.relative_to(ROOT).as_posix() for path in site_sources.documents(ROOT)}
    assert {"README.md", "notebooks/index.ipynb", "notebooks/guide/faq.md"} <= names
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} <= {Path(name).name for name in names}


@pytest.mark.slow
def test_the_whole_site_is_built_without_a_complaint(tmp_path):
    command = "import sys, pathlib, build_site; sys.exit(print(*build_site.build(site=pathlib.Path(sys.argv[1]), "
    command += "reference=True), sep='\\n'))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path / "site")], cwd=ROOT / "tools", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[1:] == []
    assert 'id="snows_core.prune"' in (tmp_path / "site/api/snows_core.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "site").rglob("*.ipynb"))


def test_the_small_notebooks_run_live_behind_a_link_on_their_page(built):
    site = built[0]
    assert 'href="../../lite/notebooks/index.html?path=01_a.ipynb"' in page(built, "notebooks/browser/01_a.html")
    assert (site / "lite/notebooks/index.html").is_file() and (site / "lite/files/01_a.ipynb").is_file()
    assert not any("lite" in path.relative_to(site.resolve()).parts for path in site_check.read_pages(site))


def test_a_notebook_that_is_no_notebook_is_said(tmp_path):
    (tmp_path / "a.ipynb").mkdir()  # what JupyterLite copies are files
    assert add_live_pages(tmp_path, tmp_path / "site") == ["JupyterLite left out a.ipynb"]
