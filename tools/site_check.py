"""Checks of a built site: every link leads somewhere, formulas are set, and nothing is loaded from another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from links import address
from site_live import FOLDER

LOADED = dict.fromkeys(("script", "img", "iframe", "source", "video"), "src") | {"link": "href", "object": "data"}
NOT_LOADED = {"canonical", "next", "prev", "index", "search", "author", "license"}  # a link element with one of these
VERBATIM = {"code", "pre", "script", "style", "textarea"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_FORMULA = re.compile(r"\$[^$\s](?:[^$\n]{0,60}[^$\s])?\$")
_STYLE = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


class Page(HTMLParser):
    """Collects the links and anchors of one HTML page.

    Attributes:
        links: targets of its links and images.
        anchors: ids and names in it.
        loaded: addresses that a browser loads to show it.
        formulas: formulas between dollar signs that nothing will set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.formulas: list[str] = []
        self._verbatim: list[str] = []  # open tags inside which a dollar sign is one

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag."""
        values = {name: value or "" for name, value in attrs}
        if tag in VERBATIM or self._verbatim or "math" in values.get("class", "").split():
            self._verbatim += [tag] * (tag not in VOID)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.loaded += _styled(values.get("style", ""))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if source := values.get(LOADED.get(tag, "")):
            if tag != "link" or not NOT_LOADED & set(values.get("rel", "").split()):
                self.loaded.append(source)
            if tag == "img":
                self.links.append(source)

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a tag."""
        if tag in self._verbatim:
            while self._verbatim.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        """Look for formulas in a text."""
        if not self._verbatim:
            self.formulas += _FORMULA.findall(data)


def _styled(style: str) -> list[str]:
    """Return the addresses on other hosts that a style sheet names."""
    return [first or second for first, second in _STYLE.findall(style)]


def read_pages(site: Path) -> dict[Path, Page]:
    """Return path to content of every page of a site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        if not {"_static", FOLDER} & set(path.relative_to(site).parts):  # not our pages
            pages[path.resolve()] = page = Page()
            page.feed(path.read_text(encoding="utf-8"))
    return pages


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
    own = re.compile(rf"/{slug}/(?:(?:blob|tree|raw|edit)/{tag}/|{tag}\?urlpath=lab/tree/)([^?#]+)")
    pages = read_pages(site)
    broken = []
    for path, page in pages.items():
        for link in page.links:
            target, fragment = urldefrag(link)
            target = target if ":" in target else target.partition("?")[0]
            if re.match(r"[a-z]+:", target):
                if (found := own.search(target)) and not (root / unquote(found[1])).exists():
                    broken.append(f"{path.relative_to(site.resolve()).as_posix()}: {link}")
                continue
            other = (path.parent / unquote(target)).resolve() if target else path
            known = pages.get(other)
            anchors = set(known.anchors) if known else set()
            if not other.is_file() or (fragment and known and not {fragment, unquote(fragment)} & anchors):
                broken.append(f"{path.relative_to(site.resolve()).as_posix()}: {link}")
    return broken


def raw_formulas(site: Path) -> list[str]:
    """Return every formula of the site that stands there with its dollar signs, one line each."""
    pages = read_pages(site).items()
    return [f"{path.relative_to(site.resolve()).as_posix()}: {text}" for path, page in pages for text in page.formulas]


def foreign_resources(site: Path) -> list[str]:
    """Return everything that a page or a style sheet of the site loads from another host, one line each."""
    found = []
    for path, page in read_pages(site).items():
        text = path.read_text(encoding="utf-8")
        sheets = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
        addresses = [*page.loaded, *(link for sheet in sheets for link in _styled(sheet))]
        name = path.relative_to(site.resolve()).as_posix()
        found += [f"{name}: {link}" for link in addresses if re.match(r"(?:https?:)?//", link)]
    for sheet in sorted(path for path in site.rglob("*.css") if FOLDER not in path.relative_to(site).parts):
        links = _styled(sheet.read_text(encoding="utf-8"))
        found += [f"{sheet.relative_to(site).as_posix()}: {link}" for link in links]
    return found
