"""JupyterLab in a headless browser: a notebook of the book runs to its end, and its picture follows a slider.

Needs the extra "browser" and a Chromium: the system's, the one that SNOWS_BROWSER names, or playwright's own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_obs_background.ipynb"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S, PAGE_S, RUN_S, PICTURE_S = 120, 180, 900, 120  # generous: a test machine may be busy
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, not only those in view
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # nothing pops up
}
IDLE = ".jp-Notebook-ExecutionIndicator[data-status='idle']"
INSTALL = "pip install -e '.[dev,browser]'"

pytestmark = pytest.mark.slow


def browser_path(own: str) -> str | None:
    """Return the browser to drive: the user's choice, the system's, else playwright's own, or None."""
    candidates = [os.environ.get("SNOWS_BROWSER"), *map(shutil.which, NAMES), own if Path(own).is_file() else None]
    return next((path for path in candidates if path), None)


@pytest.fixture
def page() -> Iterator:
    """Return an empty page of a headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason=f"playwright is missing: {INSTALL}")
    with api.sync_playwright() as playwright:
        path = browser_path(playwright.chromium.executable_path)
        if path is None:
            pytest.skip("no Chromium here: install your system's, or run `playwright install chromium`")
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses to start as root
        browser = playwright.chromium.launch(
            executable_path=path, args=["--disable-dev-shm-usage", *(["--no-sandbox"] if root else [])]
        )
        try:
            opened = browser.new_page(viewport={"width": 1200, "height": 900})
            opened.set_default_timeout(1000 * PAGE_S)
            yield opened
        finally:
            browser.close()


@pytest.fixture
def lab(tmp_path) -> Iterator[tuple[str, Path]]:
    """Return the address, up to a path, of a JupyterLab of its own with one notebook without outputs, and its file."""
    pytest.importorskip("jupyterlab", reason=f"JupyterLab is missing: {INSTALL}")
    books = tmp_path / "books"
    books.mkdir()
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    file = books / NOTEBOOK.name
    file.write_text(json.dumps(content), encoding="utf-8")
    for name, value in SETTINGS.items():
        settings = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "JUPYTER_TOKEN")}
    environment |= {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "SNOWS_FIGURES": str(tmp_path / "figures"),
        "OMP_NUM_THREADS": "1",  # small matrices: several threads on a busy machine only wait for each other
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={books}",
        "--allow-root",
    ]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=books, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for_server(server, f"{address}/api/status?token={token}", tmp_path / "server.log")
        yield f"{address}/lab/tree/{file.name}?token={token}", file
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for_server(server: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not answer in {START_S} s:\n{log.read_text()[-3000:]}")


def wait_for_kernel(page) -> None:
    """Wait until the notebook has a kernel and it is idle; before, "Run All Cells" would ask which kernel to take."""
    page.wait_for_function(
        f"""document.querySelector(".jp-NotebookPanel .jp-KernelName")?.textContent.startsWith("Python 3")
            && document.querySelector("{IDLE}")"""
    )


def run_all(page, cells: int) -> None:
    """Choose Run > Run All Cells and wait until every code cell has its number, or one shows an error."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    marks = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent.trim())"
    page.wait_for_function(
        f"""cells => document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
            || ({marks}.length == cells && {marks}.every(mark => /^\\[\\d+\\]:$/.test(mark))
                && document.querySelector("{IDLE}"))""",
        arg=cells,
        timeout=1000 * RUN_S,
    )


def picture(page) -> str:
    """Return the content of the picture under the first slider, as text."""
    return page.evaluate(
        """async () => {
            const image = document.querySelector('.jp-OutputArea img.jupyter-widgets');
            const blob = await (await fetch(image.src)).arrayBuffer();
            return [...new Uint8Array(blob)].join();
        }"""
    )


def test_a_notebook_runs_in_jupyterlab_and_its_slider_moves_the_picture(page, lab):
    address, file = lab
    cells = sum(cell["cell_type"] == "code" for cell in json.loads(file.read_text(encoding="utf-8"))["cells"])
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    wait_for_kernel(page)
    run_all(page, cells)

    page.keyboard.press("Control+s")
    saved: list[dict] = []
    for _ in range(60):
        saved = [c for c in json.loads(file.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        if all(cell["execution_count"] for cell in saved):
            break
        page.wait_for_timeout(500)
    errors = [output for cell in saved for output in cell["outputs"] if output["output_type"] == "error"]
    assert not errors, errors[0]["evalue"]
    assert [cell["execution_count"] for cell in saved] == list(range(1, cells + 1))

    handle = page.locator(".jp-OutputArea .widget-slider .noUi-handle").first
    handle.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.jp-OutputArea img.jupyter-widgets')?.naturalWidth > 100")
    before, value = picture(page), handle.get_attribute("aria-valuenow")
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert handle.get_attribute("aria-valuenow") != value
    end = time.monotonic() + PICTURE_S
    while picture(page) == before:
        assert time.monotonic() < end, f"the picture did not change in {PICTURE_S} s after the slider moved"
        page.wait_for_timeout(500)
