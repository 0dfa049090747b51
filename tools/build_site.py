"""Static HTML of the notebooks and the API reference in site/, and a check of every link and public name.

    python tools/build_site.py

Notebooks are shown as committed, nothing is run; the reference is made of docstrings (tools/build_api.py), and a public
name without one fails the build. Works offline. Figures are inside the pages; formulas are set by MathJax, which a
reader's browser loads from its public address. Links between notebooks become links between pages; links to other files
of the repository lead to its public address at the tag of the version.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
from nbconvert import HTMLExporter

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_api import build as build_reference
from links import ROOT, address

NOT_NEEDED = ("require_js_url", "jquery_url", "mermaid_js_url", "widget_renderer_url", "jupyter_widgets_base_url")
STYLE = """<style>
body.jp-Notebook { max-width: 1080px; margin: 0 auto; padding: 0 12px 48px; }
nav.site { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 12px 0; border-bottom: 1px solid #bdbdbd; }
nav.site { font-family: system-ui, sans-serif; font-size: 14px; }
nav.site a { color: #0b5394; text-decoration: none; }
nav.site a:hover { text-decoration: underline; }
nav.site a.last { margin-left: auto; }
.highlight pre, .jp-RenderedText pre { overflow-x: auto; }
.jp-RenderedHTMLCommon table { display: block; overflow-x: auto; width: fit-content; max-width: 100%; margin-left: 0; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
</style>
"""
REFERENCE = "api/snows_core.html"
_LINK = re.compile(r"(\]\()([^)\s]+)(\s*\"[^\"]*\")?(\))")


class Page(HTMLParser):
    """Collects the links and anchors of one HTML page.

    Attributes:
        links: targets of its links and images.
        anchors: ids and names in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag."""
        for name, value in attrs:
            if value and ((name == "href" and tag == "a") or (name == "src" and tag == "img")):
                self.links.append(value)
            if value and name in ("id", "name"):
                self.anchors.add(value)


def page_links(source: str, notebook: Path, root: Path) -> str:
    """Return Markdown whose relative links fit the site.

    Args:
        source: Markdown of a cell.
        notebook: the file it stands in.
        root: the checkout.

    Returns:
        The Markdown.
    """
    slug, tag = address(root)

    def fit(found: re.Match[str]) -> str:
        target, fragment = urldefrag(found[2])
        if not target or ":" in target.split("/")[0]:
            return found[0]
        path = (notebook.parent / unquote(target)).resolve()
        if path.suffix == ".ipynb" and path.is_relative_to(root / "notebooks"):
            target = target.removesuffix(".ipynb") + ".html"
        elif path.suffix not in (".png", ".jpg", ".svg") and path.exists() and path.is_relative_to(root):
            view = f"{'tree' if path.is_dir() else 'blob'}/{tag}/{path.relative_to(root).as_posix()}"
            target = f"https://github.com/{slug}/{view}"
        return f"{found[1]}{target}{'#' + fragment if fragment else ''}{found[3] or ''}{found[4]}"

    return _LINK.sub(fit, source)


def convert(notebook: Path, target: Path, root: Path) -> str:
    """Write one notebook as a page with its figures inside; return its title."""
    content = nbformat.read(notebook, as_version=4)
    title = notebook.stem
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = page_links(cell.source, notebook, root)
            heading = re.search(r"^# +(.+)$", cell.source, re.MULTILINE)
            title = heading[1].strip() if heading and title == notebook.stem else title
    exporter = HTMLExporter(embed_images=True, **dict.fromkeys(NOT_NEEDED, ""))
    body, _ = exporter.from_notebook_node(content, {"metadata": {"name": title, "path": str(notebook.parent)}})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(body, encoding="utf-8")
    return title


def add_navigation(site: Path, titles: dict[str, str]) -> None:
    """Give every page a bar with links to the list, its neighbours in the reading order, and its solutions.

    Args:
        site: folder of the pages.
        titles: title of every page, by its path in the site.
    """
    ordered = [page for page in sorted(titles) if page != "index.html"]
    for page in titles:
        folder, up = page.rpartition("/")[0], "../" * page.count("/")
        beside = [other for other in ordered if other.rpartition("/")[0] == folder]
        links = [(f"{up}index.html", "All notebooks", "")]
        links += [(up + REFERENCE, "API reference", "")] * (site / REFERENCE).is_file()
        if page in beside:
            place = beside.index(page)
            links += [(up + other, f"← {titles[other]}", "") for other in beside[max(place - 1, 0) : place]]
            links += [(up + other, f"{titles[other]} →", "") for other in beside[place + 1 : place + 2]]
            other = page.removeprefix("solutions/") if folder else f"solutions/{page}"
            links += [(up + other, "The notebook" if folder else "Solutions", ' class="last"')] * (other in titles)
        items = "".join(f'<a href="{target}"{kind}>{html.escape(text)}</a>' for target, text, kind in links)
        path = site / page
        head, tag, body = re.split(r"(<body[^>]*>)", path.read_text(encoding="utf-8"), maxsplit=1)
        head = head.replace("</head>", f"{STYLE}</head>", 1)
        path.write_text(f'{head}{tag}\n<nav class="site">{items}</nav>{body}', encoding="utf-8")


def broken_links(site: Path, root: Path) -> list[str]:
    """Return every link of the site that leads nowhere.

    Pages and anchors are looked up in the site. Addresses of this repository, those of the badges among them, must name
    a file of the checkout. Addresses of others are not visited.

    Args:
        site: folder of the pages.
        root: the checkout.

    Returns:
        One line a link: the page and where it leads.
    """
    slug, tag = map(re.escape, address(root))
    own = re.compile(rf"/{slug}/(?:(?:blob|tree|raw)/{tag}/|{tag}\?urlpath=lab/tree/)(.+)$")
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path.resolve()] = page = Page()
        page.feed(path.read_text(encoding="utf-8"))
    broken = []
    for path, page in pages.items():
        for link in page.links:
            target, fragment = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                if (found := own.search(target)) and not (root / unquote(found[1])).exists():
                    broken.append(f"{path.relative_to(site.resolve()).as_posix()}: {link}")
                continue
            other = (path.parent / unquote(target)).resolve() if target else path
            known = pages.get(other)
            if not other.exists() or (fragment and known and not {fragment, unquote(fragment)} & set(known.anchors)):
                broken.append(f"{path.relative_to(site.resolve()).as_posix()}: {link}")
    return broken


def build(root: Path = ROOT, site: Path | None = None, reference: bool = False) -> list[str]:
    """Build the site of a checkout.

    Args:
        root: the checkout.
        site: folder to write, emptied first; default ``site/`` in it.
        reference: add the API reference of the package that is imported, which is that of this checkout.

    Returns:
        Broken links, and public names that are not documented.
    """
    site = root / "site" if site is None else site
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    folder, titles = root / "notebooks", {}
    for notebook in sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        page = notebook.relative_to(folder).with_suffix(".html")
        titles[page.as_posix()] = convert(notebook, site / page, root)
    if not titles:
        raise SystemExit(f"error: {folder} holds no notebook")
    if "index.html" not in titles:
        items = "\n".join(f'<li><a href="{page}">{html.escape(title)}</a></li>' for page, title in titles.items())
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>SNOWS</title><h1>SNOWS</h1>'
        (site / "index.html").write_text(f"{head}\n<ul>\n{items}\n</ul></html>\n", encoding="utf-8")
    missing = [f"not documented: {line}" for line in build_reference(site / "api")] if reference else []
    add_navigation(site, titles)
    print(f"{len(titles)} pages in {site.name}/")
    return missing + broken_links(site, root)


if __name__ == "__main__":
    found = build(reference=True)
    for line in found:
        print(line, file=sys.stderr)
    sys.exit(bool(found))
