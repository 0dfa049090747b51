"""The diffs in CONTRIBUTING.md apply to this checkout, and what they add works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DIFFS = {
    text.split("+++ b/")[1].split("\n")[0]: text
    for text in re.findall(r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M | re.S)
}
IGNORED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of what the diffs change and the checks read."""
    for folder in ("snows_core", "tools", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=IGNORED)
    for file in ("pyproject.toml", "README.md", "CITATION.cff", "tests/toys.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def apply(checkout: Path, file: str) -> None:
    command = ["git", "apply", "--whitespace=error", "-"]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.parent)}
    done = subprocess.run(command, cwd=checkout, input=DIFFS[file], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    ruff = Path(sys.executable).with_name("ruff")
    for check in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        styled = subprocess.run([ruff, *check, "snows_core"], cwd=checkout, capture_output=True, text=True)
        assert styled.returncode == 0, styled.stdout


def run(checkout: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(checkout), str(checkout / "tests")))}
    environment["SNOWS_FIGURES"] = str(checkout / "figures")
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_section_has_its_diff():
    assert list(DIFFS) == [
        "snows_core/masks/saliency.py",
        "snows_core/methods/scaled.py",
        "snows_core/methods/taylor.py",
        "snows_core/zoo/registry.py",
        "notebooks/10_small_weights.ipynb",
    ]


def test_the_mask(checkout):
    apply(checkout, "snows_core/masks/saliency.py")
    run(
        checkout,
        "import torch, snows_core as snows\n"
        "from toys import small_resnet\n"
        "result = snows.prune(small_resnet(), torch.randn(32, 3, 8, 8), pattern=0.5, k=0, saliency='relative')\n"
        "assert abs(result.sparsity - 0.5) < 0.01",
    )


def test_the_method_is_one_file_and_one_line_and_never_worse_than_no_refit(checkout):
    apply(checkout, "snows_core/methods/scaled.py")
    touched = re.findall(r"^\+\+\+ b/(.*)$", DIFFS["snows_core/methods/scaled.py"], re.M)
    assert touched == ["snows_core/methods/scaled.py", "snows_core/methods/__init__.py"]
    run(
        checkout,
        "import torch\n"
        "from toys import layer_named, layer_problem, random_mask, small_resnet\n"
        "from snows_core.activations import ActivationCache\n"
        "from snows_core.methods import METHODS\n"
        "from snows_core.network import Network\n"
        "from snows_core.settings import RECIPES\n"
        "network = Network(small_resnet())\n"
        "layer = layer_named(network, 'layer1.conv2')\n"
        "cache = ActivationCache(network, [torch.randn(8, 3, 8, 8, dtype=network.weight(layer).dtype)])\n"
        "cache.advance(network.index[layer.node])\n"
        "mask = random_mask(network.weight(layer).shape, 0.5)\n"
        "problem = layer_problem(network, [network.segment(layer, 0)], mask, cache, cache)\n"
        "scaled, plain = (METHODS[name](RECIPES['fast'], 0).solve(problem) for name in ('scaled', 'none'))\n"
        "assert scaled.statistics.loss_end < plain.statistics.loss_end\n"
        "assert torch.equal(scaled.weight != 0, problem.masked != 0)",
    )


def test_the_method_of_the_whole_network_is_one_file_and_one_line(checkout):
    apply(checkout, "snows_core/methods/taylor.py")
    run(
        checkout,
        "import torch, snows_core as snows\n"
        "from toys import small_resnet\n"
        "images = torch.randn(8, 3, 8, 8)\n"
        "result = snows.prune(small_resnet(), images, pattern='global:0.5', mask='taylor', update='none', k=0)\n"
        "assert abs(result.sparsity - 0.5) < 0.01 and result.manifest['gradients'] == {'images': 8, 'rows': 8}",
    )


def test_the_network(checkout):
    from torchvision.models import ResNet18_Weights

    apply(checkout, "snows_core/zoo/registry.py")
    assert ResNet18_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"] == 69.758
    run(
        checkout,
        "from snows_core.cli.completion import EXPERIMENT_NAMES\n"
        "from snows_core.zoo import EXPERIMENTS, experiment\n"
        "assert EXPERIMENT_NAMES == tuple(EXPERIMENTS) and experiment('resnet18').dense_accuracy == 69.758",
    )


def test_the_notebook(checkout):
    apply(checkout, "notebooks/10_small_weights.ipynb")
    subprocess.run([sys.executable, "tools/links.py"], cwd=checkout, check=True, capture_output=True)
    path = checkout / "notebooks/10_small_weights.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert "snows-core[cells] @ git+" in "".join(cells[1]["source"])
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    run(
        checkout,
        f"{code}\n"
        "from pathlib import Path\n"
        "from snows_core.book.checks import check_before, find_notebooks\n"
        "from snows_core.book.profiles import profiles_of\n"
        "folder = Path('notebooks')\n"
        "(notebook,) = find_notebooks(folder, ['10'])\n"
        "check_before(notebook, {'limit': 0.2})\n"
        "assert 'digits' in profiles_of(notebook.stem, folder)",
    )
    metrics = json.loads((checkout / "figures/10_small_weights/metrics.json").read_text())
    assert 0 < metrics["metrics"]["small_percent"] < 100
