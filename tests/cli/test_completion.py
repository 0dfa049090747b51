"""completion.py: the lists are those of the package, and a Tab loads nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from snows_core.cli import app as cli
from snows_core.cli import completion
from snows_core.comparison.cells import known_masks, known_updates
from snows_core.masks.patterns import parse_pattern
from snows_core.masks.saliency import IMAGE_SALIENCIES, SALIENCIES
from snows_core.settings import get_recipe
from snows_core.zoo.data import DATASETS
from snows_core.zoo.registry import EXPERIMENTS
from snows_core.zoo.train import RECIPES as SHIPPED


def test_the_lists_are_those_of_the_package():
    assert completion.EXPERIMENT_NAMES == tuple(EXPERIMENTS)
    assert completion.DATA_NAMES == tuple(name.replace("<path>", "") for name in DATASETS)
    assert completion.shipped("") == list(SHIPPED)
    assert list(completion.MASK_NAMES) == known_masks() and list(completion.UPDATE_NAMES) == known_updates()
    for pattern in completion.PATTERNS:
        parse_pattern(pattern)
    assert all(get_recipe(name) for name in completion.recipes(""))
    assert sorted(completion.saliencies("")) == sorted([*SALIENCIES, *IMAGE_SALIENCIES])


def test_names_are_offered_by_their_beginning():
    assert completion.models("digits-v") == ["digits-vit-b", "digits-vit-l"]
    assert completion.models("ti") == ["timm/"] and completion.models("nosuch/") == []
    assert completion.data("im") == ["imagenette", "imagenet", "imagenet-samples"] and completion.recipes("p") == [
        "paper"
    ]
    assert completion.patterns("glo") == ["global:0.8", "global:0.9:0.95"] and completion.devices("cu")[0] == "cuda"
    assert completion.settings("curv") == ["curvature=", "curvature_images="]
    assert completion.settings("curvature=h") == ["curvature=hessian"]
    assert completion.settings("warm_start=") == ["warm_start=true", "warm_start=false"]
    assert completion.settings("steps=") == completion.settings("nosuch=") == []


def test_names_with_commas_between_are_offered_one_behind_the_other():
    assert completion.masks("obs,w") == ["obs,wanda", "obs,woodfisher"]
    assert completion.updates("none,sn") == [
        f"none,{name}" for name in completion.UPDATE_NAMES if name.startswith("sn")
    ]
    assert completion.masks("obs,ob") == ["obs,obc", "obs,obd"], "no name twice"


def test_networks_of_a_library_are_offered_once_it_is_named(monkeypatch):
    assert "timm/resnet50" in completion.models("timm/resnet5")
    assert "torchvision/vit_b_16" in completion.models("torchvision/vit")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert completion.models("timm/res") == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("snows prune --model digits-re", ["digits-resnet20", "digits-resnet50"]),
        ("snows estimate --set targ", ["targets="]),
        ("snows prune --recipe pa", ["paper"]),
        ("snows prune --data cif", ["cifar10", "cifar10-full", "cifar100"]),
        ("snows train digits-vit", ["digits-vit-b", "digits-vit-l"]),
        ("snows exper", ["experiments"]),
        ("snows export --to s", ["state-dict", "safetensors"]),
        ("snows compare --masks wanda,ob", ["wanda,obc", "wanda,obs", "wanda,obd"]),
        ("snows compare --updates sp", ["sparsegpt"]),
        ("snows prune --max", ["--max-memory"]),
    ],
)
def test_a_shell_gets_them_without_pytorch(typed, offered):
    code = (
        "import sys\n"
        "from snows_core.cli.app import app\n"
        "try:\n"
        "    app(prog_name='snows')\n"
        "finally:\n"
        "    assert not {'torch', 'timm', 'torchvision', 'pandas'} & set(sys.modules)"
    )
    environment = {
        "_SNOWS_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.stdout.split() == offered, done.stderr


def test_the_command_line_can_install_it():
    assert cli.app._add_completion
