"""Notebooks without widget state, timings and editor noise; outputs, counts and ids stay: a reader sees them.

The code of cells that a reader may skip, those tagged "install", "check" or "record", is folded: in JupyterLab by
``jupyter.source_hidden``, in Colab by ``cellView``. Their outputs, where the measured numbers are, stay in view.

python tools/strip_notebooks.py            strip every notebook
python tools/strip_notebooks.py --check    only say which would change (exit code 1)
python tools/strip_notebooks.py FILE ...   those alone
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOISE = (
    "metadata.widgets metadata.papermill metadata.vscode metadata.language_info.version cell.metadata.execution "
    "cell.metadata.papermill cell.metadata.collapsed cell.metadata.jp-MarkdownHeadingCollapsed"
)
FOLDED = {"install", "check", "record"}


def fold(path: Path, check: bool = False) -> bool:
    """Fold the code of cells with one of the tags ``FOLDED``, and of no others.

    Args:
        path: the notebook.
        check: change nothing.

    Returns:
        Whether the file changes, or with ``check`` would change.
    """
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    for cell in content["cells"]:
        about = cell["metadata"]
        if cell["cell_type"] != "code":
            continue
        about.get("jupyter", {}).pop("source_hidden", None)
        about.pop("cellView", None)
        if FOLDED & set(about.get("tags", [])):
            about["cellView"] = "form"
            about.setdefault("jupyter", {})["source_hidden"] = True
        elif not about.get("jupyter", True):
            del about["jupyter"]
    new = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    changed = json.loads(text) != content
    if changed and not check:
        path.write_text(new, encoding="utf-8")
    return changed


def strip(paths: list[Path], check: bool = False) -> int:
    """Run nbstripout on notebooks, and fold what is to be folded.

    Args:
        paths: the files.
        check: change nothing.

    Returns:
        0, or with ``check`` 1 when a file would change.
    """
    options = ["--keep-output", "--keep-count", "--keep-id", "--extra-keys", NOISE, *["--verify"] * check]
    command = [sys.executable, "-m", "nbstripout", *options, *map(str, paths)]
    stripped = subprocess.run(command, check=False).returncode
    changed = [path for path in paths if fold(path, check)]
    for path in changed if check else ():
        print(f"{path}: cells to fold, run python tools/strip_notebooks.py", file=sys.stderr)
    return stripped or int(check and bool(changed))


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
