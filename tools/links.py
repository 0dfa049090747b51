"""Badges, links and install cells from the one public address in pyproject.toml.

    python tools/links.py                                    write them
    python tools/links.py --check                            only say which files differ (exit code 1)
    python tools/links.py --address https://github.com/O/R   change the address, then write them

The address is ``[project.urls] Repository``; the tag is ``v`` and the package's version. Rewritten are README.md,
CITATION.cff, CONTRIBUTING.md, CHANGELOG.md, every notebook and the texts beside them: Colab and Binder addresses,
``git+https`` requirements, links into the repository, and the code of cells tagged ``install``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md")
_ADDRESS = re.compile(r'^(Repository = ")(https://github\.com/([\w.-]+/[\w.-]+))(")$', re.MULTILINE)

INSTALL = """\
# Installs the package at this notebook's tag where it is missing (Colab); torch and numpy stay as they are.
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("snows_core") is None:
    there = [name for name in ("torch", "torchvision", "numpy") if importlib.util.find_spec(name)]
    kept = pathlib.Path("kept.txt")
    kept.write_text("\\n".join(f"{{name}}=={{importlib.metadata.version(name)}}" for name in there))
    package = "snows-core[cells] @ git+https://github.com/{slug}@{tag}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", str(kept), package], check=True)"""


def address(root: Path = ROOT) -> tuple[str, str]:
    """Return owner/name of the repository, and the tag of the package's version."""
    found = _ADDRESS.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    version = re.search(r'^__version__ = "([^"]+)"$', (root / "snows_core/__init__.py").read_text(), re.MULTILINE)
    if found is None or version is None:
        raise SystemExit('error: pyproject.toml has no Repository = "https://github.com/OWNER/NAME", or no version')
    return found[3], f"v{version[1]}"


def badges(slug: str, tag: str, path: str) -> str:
    """Return the Markdown of a notebook's two badges; ``path`` counts from the repository's root."""
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{slug}/blob/{tag}/{path})\n"
        "[![Binder](https://mybinder.org/badge_logo.svg)]"
        f"(https://mybinder.org/v2/gh/{slug}/{tag}?urlpath=lab/tree/{path})"
    )


def rewritten(text: str, slug: str, tag: str, old: str | None = None) -> str:
    """Return a text with every address of this repository pointing to slug and tag.

    Args:
        text: Markdown or YAML.
        slug: owner/name.
        tag: of the release.
        old: owner/name that plain links had before, where it changes.

    Returns:
        The text.
    """
    own = "|".join(re.escape(name) for name in {slug, old or slug})
    rules = (
        (r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/[^/\s)]+/", rf"\g<1>{slug}/blob/{tag}/"),
        (r"(mybinder\.org/v2/gh/)[\w.-]+/[\w.-]+/[^?\s)]+", rf"\g<1>{slug}/{tag}"),
        (rf"(git\+https://github\.com/)(?:{own})(?:\.git)?@[\w.-]+", rf"\g<1>{slug}@{tag}"),
        (rf"(https://github\.com/)(?:{own})/(blob|tree|raw)/[^/\s)]+", rf"\g<1>{slug}/\g<2>/{tag}"),
        (rf"(https://github\.com/)(?:{own})(?![\w.-])", rf"\g<1>{slug}"),
        (r'^(repository-code: ")[^"]+(")$', rf"\g<1>https://github.com/{slug}\g<2>"),
    )
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def rewritten_notebook(text: str, slug: str, tag: str, old: str | None = None) -> str:
    """Return a notebook file with its Markdown and its install cell rewritten; all else stays byte for byte."""
    notebook = json.loads(text)
    changed = False
    for cell in notebook["cells"]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        new = source
        if cell["cell_type"] == "markdown":
            new = rewritten(source, slug, tag, old)
        elif "install" in cell.get("metadata", {}).get("tags", []):
            new = INSTALL.format(slug=slug, tag=tag)
        if new != source:
            cell["source"], changed = new.splitlines(keepends=True), True
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n" if changed else text


def update(root: Path = ROOT, check: bool = False, old: str | None = None) -> list[str]:
    """Rewrite the files of a checkout.

    Args:
        root: the checkout.
        check: only find out which files would change.
        old: owner/name that plain links had before.

    Returns:
        Files that differed, from the root.
    """
    slug, tag = address(root)
    notebooks = sorted(p for p in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    differing = []
    texts = [*(root / name for name in TEXTS if (root / name).is_file()), *sorted((root / "notebooks").rglob("*.md"))]
    for path in [*texts, *notebooks]:
        text = path.read_text(encoding="utf-8")
        new = (rewritten_notebook if path.suffix == ".ipynb" else rewritten)(text, slug, tag, old)
        if new != text:
            differing.append(path.relative_to(root).as_posix())
            if not check:
                path.write_text(new, encoding="utf-8")
    return differing


def main() -> int:
    """Read the options and do it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when something differs")
    parser.add_argument("--address", help="new public address, https://github.com/OWNER/NAME")
    options = parser.parse_args()
    old = None
    if options.address:
        if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", options.address):
            parser.error(f"--address: got {options.address}; expected https://github.com/OWNER/NAME")
        old = address()[0]
        project = ROOT / "pyproject.toml"
        project.write_text(_ADDRESS.sub(rf"\g<1>{options.address}\g<4>", project.read_text(encoding="utf-8")))
    differing = update(check=options.check, old=old)
    for name in differing:
        print(f"{'differs' if options.check else 'rewritten'}: {name}")
    return int(options.check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
