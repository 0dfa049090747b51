"""What the site is made of, collected in a folder of its own: notebooks, texts, and the pictures that they show.

The folder repeats the places of the repository, so that a link between two documents stays as it is. A link to any
other file of the repository leads to its public address at the tag of the version. Cells tagged ``install``, ``check``
or ``record`` are folded; badges are shown from pictures of the site's own.
"""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
from links import address
from site_live import live_address

HERE = Path(__file__).resolve().parent / "site"
FOLDED = {"install", "check", "record"}
BADGES = {
    "https://colab.research.google.com/assets/colab-badge.svg": "/badges/colab.svg",
    "https://mybinder.org/badge_logo.svg": "/badges/binder.svg",
}
PICTURES = (".png", ".jpg", ".svg", ".gif")
_LINK = re.compile(r"(\]\()([^)\s]+)((?:\s*\"[^\"]*\")?\))")


def documents(root: Path) -> list[Path]:
    """Return the files of a checkout that become pages: the texts at its top, notebooks and texts among them."""
    below = (root / "notebooks").rglob("*")
    found = [*root.glob("*.md"), *(path for path in below if path.suffix in (".ipynb", ".md"))]
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def fitted(source: str, document: Path, root: Path, target: Path) -> str:
    """Return Markdown whose links fit the site; pictures that it shows are copied.

    Args:
        source: Markdown of a text or of a cell.
        document: the file it stands in.
        root: the checkout.
        target: the folder of the sources.

    Returns:
        The Markdown.
    """
    slug, tag = address(root)
    pages = set(documents(root))

    def fit(found: re.Match[str]) -> str:
        link = BADGES.get(found[2], found[2])
        place, fragment = urldefrag(link)
        path = (document.parent / unquote(place)).resolve()
        inside = bool(place) and path.is_relative_to(root) and path.exists() and path not in pages
        if inside and path.suffix in PICTURES:
            copy = target / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        elif inside:
            kind = "tree" if path.is_dir() else "blob"
            link = f"https://github.com/{slug}/{kind}/{tag}/{path.relative_to(root).as_posix()}"
            link += f"#{fragment}" if fragment else ""
        return f"{found[1]}{link}{found[3]}"

    return _LINK.sub(fit, source)


def write_attachments(cell: nbformat.NotebookNode, target: Path) -> None:
    """Write the pictures that are attached to a Markdown cell beside its notebook, and let the cell show those."""
    for name, contents in cell.get("attachments", {}).items():
        picture = target.with_name(f"{target.stem}-{cell.id}-{name}")
        picture.write_bytes(base64.b64decode(next(iter(contents.values()))))
        cell.source = cell.source.replace(f"(attachment:{name})", f"({picture.name})")


def write_notebook(notebook: Path, root: Path, target: Path) -> None:
    """Write one notebook, ready for Sphinx, to its place below ``target``."""
    content = nbformat.read(notebook, as_version=4)
    copy = target / notebook.relative_to(root)
    if notebook.parent.name == "solutions":  # else search and navigation show two pages of one name
        for cell in content.cells[:1]:
            cell.source = re.sub(r"^(# (?!.*solutions).*)$", r"\1: solutions", cell.source, count=1, flags=re.MULTILINE)
    if notebook.parent == root / "notebooks" / "browser":
        link = f'<a href="../../{live_address(notebook)}">Run this notebook in your browser</a>'
        content.cells.insert(1, nbformat.v4.new_markdown_cell(link))
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = fitted(cell.source, notebook, root, target)
            write_attachments(cell, copy)
        elif FOLDED & set(cell.metadata.get("tags", [])):
            cell.metadata.tags = [*cell.metadata.tags, "hide-input"]  # what myst-nb folds
    nbformat.write(content, copy)


def collect(root: Path, target: Path) -> int:
    """Collect all sources but the API reference.

    Args:
        root: the checkout.
        target: an empty folder.

    Returns:
        How many documents.
    """
    found = documents(root)
    for document in found:
        copy = target / document.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if document.suffix == ".ipynb":
            write_notebook(document, root, target)
        else:
            copy.write_text(fitted(document.read_text(encoding="utf-8"), document, root, target), encoding="utf-8")
    front = (HERE / "index.md").read_text(encoding="utf-8")
    (target / "index.md").write_text(fitted(front, root / "index.md", root, target), encoding="utf-8")
    shutil.copytree(HERE / "badges", target / "badges")
    return len(found) + 1
