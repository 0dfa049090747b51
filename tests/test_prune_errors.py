"""prune.py: every bad argument has one clear error, before any work is done."""

import importlib

import pytest
import torch
from toys import SmallResNet, random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.methods.snows import Snows

module = importlib.import_module("snows_core.sweep.sweep")
pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def run(model, **options):
    return snows.prune(
        model, random_images(6), options.pop("pattern", "2:4"), **{"k": 3, "progress": False, **options}, effort="quick"
    )


BAD = {
    "k negative": ({"k": -1}, r'k: got -1; expected an integer >= 0, or "auto"\. k=0 is layer-wise least squares'),
    "k a fraction": ({"k": 2.5}, r"k: got 2\.5; expected an integer >= 0"),
    "k a truth value": ({"k": True}, r"k: got True; expected an integer >= 0"),
    "pattern": ({"pattern": "2-4"}, r"pattern: got '2-4'; expected \"n:m\""),
    "recipe": ({"recipe": "quick"}, r"recipe: got 'quick'; expected one of"),
    "option": ({"cg_iters": 3}, r"option: got 'cg_iters'; expected one of .*Nearest: cg_iter"),
    "layer": ({"layers": ["layer9"]}, r"layers: got 'layer9'; expected names or globs"),
    "nothing": ({"layers": []}, r"layers: got a choice that selects no layer"),
    "mask method": ({"mask": "magnitud"}, r"mask: got 'magnitud'; expected one of .*Nearest: magnitude"),
    "update method": ({"update": "adam"}, r"update: got 'adam'; expected one of"),
    "saliency": ({"saliency": "wandaa"}, r"saliency: got 'wandaa'; expected one of"),
    "limit": ({"max_images": 0}, r"max_images: got 0; expected an integer >= 1"),
    "mask shape": (
        {"masks": {"fc": torch.ones(2, 2, dtype=torch.bool)}},
        r"masks: got shape \(2, 2\) for 'fc'; expected",
    ),
    "mask empty": ({"masks": {"layer1.conv1": torch.zeros(4, 4, 3, 3, dtype=torch.bool)}}, r"leaves layer .* empty"),
    "mask name": (
        {"masks": {"conv9": torch.ones(1, dtype=torch.bool)}},
        r"masks: got a mask for 'conv9'; expected names",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_every_bad_argument_has_one_clear_error_before_any_work(name, monkeypatch):
    monkeypatch.setattr(Snows, "solve", lambda *_: pytest.fail("work was done"))
    options, message = BAD[name]
    with pytest.raises(SnowsError, match=message):
        run(small_resnet(), **options)


def test_train_mode_is_refused():
    with pytest.raises(SnowsError, match=r"model: got a model in train mode; expected a model in eval mode"):
        run(SmallResNet().double().train())


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(SnowsError, match=r"device: got 'tpu'"):
        run(small_resnet(), device="tpu")


def test_a_leaf_module_that_is_not_there_is_refused():
    with pytest.raises(SnowsError, match=r"leaf_modules: got 'layer9'"):
        run(small_resnet(), leaf_modules=["layer9"])
