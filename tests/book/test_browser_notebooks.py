"""The notebooks for a web page: NumPy and Matplotlib alone, the committed numbers, the package's mathematics."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from snows_core.solvers import conjugate_gradients

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "notebooks" / "browser"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PYODIDE = os.environ.get("SNOWS_PYODIDE", "")  # a folder with Pyodide and its wheel of NumPy
OTHERS = "snows_core torch torchvision timm pandas seaborn scipy sklearn ipywidgets IPython".split()


def cells(path: Path) -> list[dict]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def source(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(path))


def committed(path: Path) -> str:
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def run(path: Path) -> tuple[dict, str]:
    """Return the names that a notebook leaves, and what it prints."""
    matplotlib.use("Agg")
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed, matplotlib.rc_context():
        exec(compile(source(path), path.name, "exec"), names)  # our own notebook
        matplotlib.pyplot.close("all")
    return names, printed.getvalue()


def test_there_are_two():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_needs_nothing_but_numpy_and_matplotlib_and_prints_what_is_committed(path):
    code = f"import sys\nfor name in {OTHERS!r}: sys.modules[name] = None\n{source(path)}"
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == committed(path)


def test_one_weight_costs_what_the_other_weights_leave():
    names, _ = run(NOTEBOOKS[0])
    w, H = names["w"], names["H"]
    for q in range(len(w)):
        kept = np.delete(np.arange(len(w)), q)
        best = np.linalg.lstsq(names["X"][kept].T, names["X"].T @ w, rcond=None)[0]  # straight from the inputs
        assert np.allclose(np.delete(w + names["obs"](q), q), best)
        assert np.isclose(0.5 * names["obs"](q) @ H @ names["obs"](q), names["costs_obs"][q])


def test_products_are_those_of_double_backward():
    names, _ = run(NOTEBOOKS[1])
    X, V, Z, W0 = (torch.from_numpy(names[name]) for name in ("X", "V", "Z", "W0"))

    def loss(W):
        return sum((a - b).square().mean() for a, b in zip(taps(W), taps(W0), strict=True))

    def taps(W):
        inner = W @ X
        return inner, inner.relu(), V @ inner.relu()

    W = torch.where(Z, W0, 0).requires_grad_(True)
    direction = torch.where(Z, torch.randn(W.shape, dtype=W.dtype, generator=torch.Generator().manual_seed(0)), 0)
    (gradient,) = torch.autograd.grad(loss(W), W, create_graph=True)
    (product,) = torch.autograd.grad(gradient, W, direction)
    ours = names["gradient"](W.detach().numpy()), names["product"](W.detach().numpy(), direction.numpy())
    assert np.allclose(ours[0], torch.where(Z, gradient, 0).detach().numpy(), atol=1e-14)
    assert np.allclose(ours[1], torch.where(Z, product, 0).numpy(), atol=1e-14)


def test_conjugate_gradients_are_those_of_the_package():
    names, _ = run(NOTEBOOKS[1])
    masked, apply = names["masked"], names["gram_preconditioner"]()
    right = -names["gradient"](masked)
    step, model = names["conjugate_gradients"](lambda U: names["product"](masked, U), right, apply, iterations=6)
    package = conjugate_gradients(
        lambda U: torch.from_numpy(names["product"](masked, U.numpy())),
        torch.from_numpy(right),
        precondition=lambda R: torch.from_numpy(apply(R.numpy())),
        max_iterations=6,
    )
    assert np.allclose(step, package.x.numpy(), rtol=1e-8, atol=1e-12)
    assert np.allclose(model[1:], package.model[-6:], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.skipif(not PYODIDE or not shutil.which("node"), reason="SNOWS_PYODIDE names no folder, or no Node")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_pyodide(path):
    command = ["node", str(HERE / "in_pyodide.mjs"), PYODIDE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert committed(path) in done.stdout
