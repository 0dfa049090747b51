"""A call gives back what it took: many calls in one process take no more memory than one."""

import gc
import json
import linecache
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import random_images, small_resnet, small_vit

import snows_core as snows

LIMIT = 0.3  # MB a call; one forgotten graph of the network below is more

PREAMBLE = """
import gc, json, warnings
import psutil, torch
from torch import nn
import snows_core as snows

warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)

def resident():
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6
"""

LOOP = """
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
).eval()
images = torch.randn(2, 3, 96, 96)
calls = {  # what is called, and how often
    "prune": (lambda: snows.prune(model, images, k=3, progress=False), 40),
    "prune with refine": (lambda: snows.prune(model, images, k=0, refine=1, progress=False), 10),
    "estimate": (lambda: snows.estimate(model, images, k=3), 15),
    "make_masks": (lambda: snows.make_masks(model, images), 40),
}
grown = {}
for name, (call, times) in calls.items():
    for _ in range(5):
        call()
    before = resident()
    for _ in range(times):
        call()
    grown[name] = (resident() - before) / times
print(json.dumps(grown))
"""

LARGE = """
from timm import create_model

model = create_model("resnet50", num_classes=10).eval()
images = torch.randn(2, 3, 224, 224)
few = ["layer1.0.conv2", "layer3.2.conv2"]

def call():
    snows.prune(model, images, k=1, layers=few, progress=False)
    snows.estimate(model, images, k=2)

call()  # what PyTorch loads and keeps on its own
before = resident()
call()
print(json.dumps({"MB": resident() - before}))
"""


def measured(script):
    """Run a script in a process of its own, so that other tests do not disturb, and return the numbers it prints."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_TRIM_THRESHOLD_": "131072",  # what is freed goes back to the system and is not kept for later
    }
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CALLS = {
    "prune": lambda model, images: snows.prune(model, images, k=2, progress=False),
    "prune with a bar": lambda model, images: snows.prune(model, images, k=1, effort="quick"),
    "prune on disk": lambda model, images: snows.prune(
        model, images, k=1, effort="quick", max_memory=1e6, progress=False
    ),
    "prune with refine": lambda model, images: snows.prune(
        model, images, k=0, effort="quick", refine=2, refine_solver="natural", progress=False
    ),
    "prune by Fisher": lambda model, images: snows.prune(
        model, images, 0.5, k=0, effort="quick", saliency="obs+fisher", progress=False
    ),
    "a mask of the whole network": lambda model, images: snows.prune(
        model, images, 0.5, k=0, effort="quick", mask="chita", progress=False
    ),
    "estimate": lambda model, images: snows.estimate(model, images, k=1),
    "make_masks": lambda model, images: snows.make_masks(model, images),
    "evaluate": lambda model, images: snows.evaluate(model, [(images, torch.zeros(len(images), dtype=torch.long))]),
    "compact": lambda model, images: snows.compact(model, images),
    "eligibility": lambda model, images: snows.eligibility(model, images),
}


def tensors():
    """All tensors that the garbage collector knows of, by identity; a dead weak proxy has no type to ask for."""
    return {id(thing): thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)}


@pytest.mark.usefixtures("few_images_are_fine")
@pytest.mark.filterwarnings("ignore:max_memory", "ignore:.*zero already")
@pytest.mark.parametrize("make, size", [(small_resnet, 8), (small_vit, 4)])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_waits_for_the_garbage_collector(call, make, size):
    """Tensors in circles of objects stay until Python looks for such circles: in a large process, very seldom."""
    model, images = make(), random_images(6, size)
    call(model, images)  # what is made once and kept
    gc.collect()
    gc.disable()
    try:
        before, texts = tensors(), set(linecache.cache)
        call(model, images)
        left = [tuple(tensor.shape) for key, tensor in tensors().items() if key not in before]
        assert left == []
        assert [name for name in linecache.cache if name not in texts and name.startswith("<")] == []
    finally:
        gc.enable()


def test_forty_calls_take_no_more_memory_than_one():
    grown = measured(LOOP)
    assert all(megabytes < LIMIT for megabytes in grown.values()), f"MB a call: {grown}"


@pytest.mark.slow
def test_a_large_network_leaves_nothing_behind():
    assert measured(LARGE)["MB"] < 30  # the graphs that estimate looks at are some hundred megabytes
