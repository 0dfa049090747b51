"""The small notebooks as live pages of the site: JupyterLite, whose Python runs in the reader's browser.

The pages are made without a network. When one is opened, the browser loads Python itself (Pyodide) and NumPy and
Matplotlib from the public address of Pyodide, which is the one thing of the site that is not part of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

FOLDER = "lite"
APP = f"{FOLDER}/notebooks/index.html"  # the single-document app of JupyterLite


def live_address(notebook: Path) -> str:
    """Return where a notebook runs, seen from the top of the site.

    >>> live_address(Path("01_obs_background.ipynb"))
    'lite/notebooks/index.html?path=01_obs_background.ipynb'
    """
    return f"{APP}?path={quote(notebook.name)}"


def add_live_pages(notebooks: Path, site: Path) -> list[str]:
    """Add the app and the notebooks of one folder to a built site.

    Args:
        notebooks: folder of notebooks that need nothing but NumPy and Matplotlib.
        site: the built site.

    Returns:
        What went wrong, one line each.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--lite-dir", folder, "--contents", str(notebooks), "--output-dir", str((site / FOLDER).resolve())]
        less = ["--apps", "notebooks", "--no-sourcemaps", "--no-unused-shared-packages"]
        command = [sys.executable, "-m", "jupyterlite_core", "build", *options, *less]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        return [f"JupyterLite failed: {' '.join(done.stderr.split())[-500:]}"]
    missing = [path.name for path in notebooks.glob("*.ipynb") if not (site / FOLDER / "files" / path.name).is_file()]
    return [f"JupyterLite left out {name}" for name in missing]
