"""The core prunes without the extras, loads none of them, and what lacks its extra says so in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = (  # what is imported of the extras zoo, cli, cells, book and dev
    "timm torchvision sklearn platformdirs huggingface_hub PIL typer click matplotlib seaborn yaml pydantic jupyterlab"
    " ipywidgets ipykernel IPython papermill nbformat nbconvert scipy curvlinops hypothesis pytest sphinx"
).split()
HIDE = f"import sys\nfor name in {EXTRAS!r}: sys.modules[name] = None\n"
PRUNE = """
import torch
from torch import nn
import snows_core as snows

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                    nn.Flatten(), nn.Linear(288, 5)).eval()
images = torch.randn(32, 3, 8, 8)
result = snows.prune(net, images, pattern="2:4", k=2, refine=2, progress=False)
print(snows.estimate(net, images, pattern="2:4", k=2))
assert result.sparsity == 0.5 and "PruneResult: Sequential" in repr(result)
assert snows.evaluate(result.model, images, reference=net).agreement > 50
assert snows.load(result.save(FOLDER), net).model is net
assert snows.apply_masks(net, snows.make_masks(net, images, "1:4"))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)


def test_the_core_prunes_saves_loads_and_measures_without_any_extra(tmp_path):
    done = run(f"{HIDE}FOLDER = {str(tmp_path / 'result')!r}\n{PRUNE}")
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_room_of_the_core_loads_without_any_extra():
    rooms = "activations comparison devices distributed errors estimate evaluate files interruption loss masks"
    rooms += " methods network provenance prune result settings solvers sweep tables"
    code = f"import importlib, pkgutil, snows_core\nfor room in {rooms.split()!r}:\n"
    code += "    module = importlib.import_module('snows_core.' + room)\n"
    code += "    for file in pkgutil.walk_packages(getattr(module, '__path__', []), module.__name__ + '.'):\n"
    code += "        importlib.import_module(file.name)\n"
    done = run(HIDE + code)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("code", ["snows_core", "snows_core; snows_core.prune, snows_core.estimate, snows_core.load"])
def test_no_extra_is_loaded_for_the_core(code):
    done = run(f"import json, sys, {code}\nprint(json.dumps([m for m in {EXTRAS!r} if m in sys.modules]))")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("code", "missing", "extra"),
    [
        ("import snows_core.zoo", "timm and torchvision and sklearn and platformdirs", "zoo"),
        ("from snows_core.zoo.data import load_data", "timm and torchvision and sklearn and platformdirs", "zoo"),
        ("import snows_core.book", "matplotlib and seaborn and yaml and pydantic", "book"),
        ("from snows_core.cli import main; main()", "typer", "cli"),
    ],
)
def test_a_missing_extra_is_said_in_one_sentence_with_the_command(code, missing, extra):
    done = run(HIDE + code)
    sentence = f"This part of snows_core needs {missing}, not installed here. "
    command = f'Install what it needs with: pip install "snows-core[{extra}]"'
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].endswith(sentence + command)


def test_the_command_line_ends_without_a_trace_where_its_extra_is_missing():
    done = run(f"{HIDE}from snows_core.cli import main\nmain()")
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
