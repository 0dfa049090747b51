"""CHITA++: a regression a stage, with gradients at the weights that the stage before has left, on a trained network."""

from functools import cache

import pytest
import torch

import snows_core as snows
from snows_core import zoo


@cache
def digits():
    """The shipped ResNet-20, 64 calibration images and the test images."""
    experiment = zoo.experiment("digits-resnet20")
    model, data = experiment.load_model(), experiment.load_data()
    return model, data.train.sample(64, 0)[0], data.test.tensors()[0]


@cache
def pruned(update, stages):
    model, images, _ = digits()
    options = {"update": update, "stages": stages, "effort": "quick", "progress": False}
    return snows.prune(model, images, "global:0.8", mask="chita", k=2, **options)


def kl(result):
    model, _, test = digits()
    return snows.evaluate(result.model, test, reference=model).kl


@pytest.mark.parametrize(("update", "share"), [("chita", 0.25), ("snows", 0.9)])
def test_five_stages_keep_more_than_one(update, share):
    # Measured (K = 5): a twelfth with its own update (0.134 against 1.674), 0.65 of it with the update of SNOWS.
    once, staged = pruned(update, 1), pruned(update, 5)
    assert once.sparsity == pytest.approx(0.8, abs=1e-4) and staged.sparsity == pytest.approx(0.8, abs=1e-4)
    assert kl(staged) < share * kl(once)


def test_each_stage_is_sparser_and_the_last_choice_is_of_weights_that_have_moved():
    staged = pruned("chita", 5)
    found = [record["sparsity"] for record in staged.manifest["stage_records"]]
    assert found == pytest.approx([1 - 0.2 ** (i / 5) for i in range(1, 6)], abs=1e-3)
    assert any(not torch.equal(mask, pruned("chita", 1).masks[name]) for name, mask in staged.masks.items())
