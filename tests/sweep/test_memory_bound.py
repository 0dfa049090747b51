"""The bound that `max_memory` promises, on real shapes: 224 x 224 images through networks of ImageNet's size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, warnings
import psutil, timm, torch
import snows_core as snows
from snows_core.devices import peak_memory
warnings.simplefilter("ignore")
name, options = {name!r}, {options!r}
torch.manual_seed(0)
model = timm.create_model(name).eval()
images = torch.randn(options.pop("count"), 3, 224, 224)
# Libraries are loaded before memory is measured.
snows.prune(model, images[:2], "2:4", k=0, layers=options.get("layers", ["*"])[:1], progress=False, effort="quick")
before = psutil.Process().memory_info().rss
result = snows.prune(model, images, "2:4", progress=False, steps=1, cg_iterations=2, **options)
peak = peak_memory(torch.device("cpu"))
# The traced network, the result and its state; the shuffled images.
copies = 4 * sum(p.numel() * 4 for p in model.parameters()) + images.numel() * 4
print(json.dumps({{"added": peak - before - copies, "memory": result.manifest["memory"]}}))
"""

CASES = {
    "lite0, layer-wise": ("tf_efficientnet_lite0", {"k": 0, "count": 32}),
    "lite0, K = 5": ("tf_efficientnet_lite0", {"k": 5, "count": 32, "layers": ["blocks.0.*", "blocks.1.*"]}),
    "resnet50, K = 5": (
        "resnet50",
        {"k": 5, "count": 32, "layers": ["layer1.0.conv2", "layer1.0.conv3", "layer2.0.conv1"]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_stays_within_its_memory(name):
    bound = 1e9
    network, options = CASES[name]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=network, options={**options, "max_memory": bound})],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(run.stdout.splitlines()[-1])
    print(name, found)
    assert found["added"] < 1.2 * bound


def run_with(seeds):
    """Prune with random settings in forks of a process that has used autograd nowhere; see memory_settings.py."""
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, tests / "memory_settings.py", *map(str, seeds)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process as Linux says it")
@pytest.mark.parametrize("seeds", [(4, 8, 17), pytest.param(range(20), marks=pytest.mark.slow)], ids=len)
def test_random_settings_take_no_more_than_they_promise(seeds):
    """What was asked for, or where one batch needs more than that, what the warning says."""
    over = [found for found in run_with(seeds) if found["taken"] > 1.1 * found["promised"]]
    assert over == []
