"""Notebooks without widget state, timings and editor noise; outputs, counts and ids stay: a reader sees them.

python tools/strip_notebooks.py            strip every notebook
python tools/strip_notebooks.py --check    only say which would change (exit code 1)
python tools/strip_notebooks.py FILE ...   those alone
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOISE = (
    "metadata.widgets metadata.papermill metadata.vscode metadata.language_info.version cell.metadata.execution "
    "cell.metadata.papermill cell.metadata.collapsed cell.metadata.jp-MarkdownHeadingCollapsed"
)


def strip(paths: list[Path], check: bool = False) -> int:
    """Run nbstripout on notebooks.

    Args:
        paths: the files.
        check: change nothing.

    Returns:
        0, or with ``check`` 1 when a file would change.
    """
    options = ["--keep-output", "--keep-count", "--keep-id", "--extra-keys", NOISE, *["--verify"] * check]
    command = [sys.executable, "-m", "nbstripout", *options, *map(str, paths)]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Read the options and do it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when something would change")
    parser.add_argument("files", nargs="*", type=Path, help="notebooks; default: all")
    options = parser.parse_args()
    every = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    return strip(options.files or every, options.check)


if __name__ == "__main__":
    sys.exit(main())
