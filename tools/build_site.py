"""The site in site/: book, guide, API reference and search, and a check of every link and public name.

    python tools/build_site.py

Sphinx makes the pages (tools/site/conf.py). Notebooks are shown as committed, nothing is run; the reference is made of
docstrings, and a public name without one fails the build. Works offline, and so do the pages: formulas, badges and
search are in the site, and nothing that a page loads lies on another host, but for the live notebooks (site_live.py).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

sys.path.insert(0, str(Path(__file__).resolve().parent))
from docstrings import gaps, public_modules
from links import ROOT
from site_check import broken_links, foreign_resources, raw_formulas
from site_live import add_live_pages
from site_reference import write_reference
from site_sources import collect

SETTINGS = Path(__file__).resolve().parent / "site"


def warnings_of(source: Path, site: Path) -> list[str]:
    """Let Sphinx make the pages of collected sources.

    Args:
        source: folder of the sources.
        site: folder to write.

    Returns:
        Sphinx's warnings, one line each; its own words where it gave up.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "warnings"
        options = ["-b", "html", "-q", "--no-color", "-c", str(SETTINGS), "-d", f"{folder}/trees", "-w", str(log)]
        pages = Path(folder) / "pages" / "html"  # myst-nb writes the pictures of cells beside it, too
        failed = build_main([*options, str(source), str(pages)])
        shutil.move(pages, site)
        text = log.read_text(encoding="utf-8") if log.is_file() else ""
    lines = [line.replace(f"{source}/", "") for line in text.splitlines() if line.strip()]
    return lines or ["Sphinx failed"] * bool(failed)


def build(root: Path = ROOT, site: Path | None = None, reference: bool = False) -> list[str]:
    """Build the site of a checkout.

    Args:
        root: the checkout.
        site: folder to write, emptied first; default ``site/`` in it.
        reference: add the API reference of the package that is imported, which is that of this checkout.

    Returns:
        What is wrong with it: Sphinx's warnings, undocumented public names, broken links, raw formulas, resources on
        other hosts.
    """
    site = root / "site" if site is None else site
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder).resolve() / "sources"
        count = collect(root.resolve(), source)
        if reference:
            write_reference(source / "api")
        found = warnings_of(source, site)
    live = root / "notebooks" / "browser"
    found += add_live_pages(live, site) if live.is_dir() else []
    print(f"{count} documents{' and the API reference' * reference} in {site.name}/")
    found += [f"not documented: {line}" for line in (gaps(public_modules()) if reference else [])]
    found += [f"leads nowhere: {line}" for line in broken_links(site, root)]
    found += [f"not set: {line}" for line in raw_formulas(site)]
    return found + [f"on another host: {line}" for line in foreign_resources(site)]


if __name__ == "__main__":
    problems = build(reference=True)
    for line in problems:
        print(line, file=sys.stderr)
    sys.exit(bool(problems))
