"""prepare.py: what a run finds before it solves anything, where masks are given and where they are made."""

import pytest
import torch
from toys import random_images, small_resnet

from snows_core.masks import NM
from snows_core.settings import PruneSettings
from snows_core.sweep.prepare import prepare

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def test_given_masks_choose_the_layers_and_stay_as_they_are():
    model, generator = small_resnet(), torch.Generator().manual_seed(0)
    given = {
        name: torch.rand(model.get_submodule(name).weight.shape, generator=generator) > 0.4
        for name in ("layer1.conv2", "fc")
    }
    prepared = prepare(model, [random_images(4)], PruneSettings(masks=given))
    assert [entry.name for entry in prepared.layers] == ["layer1.conv2", "fc"]  # the last layer, too: it was asked for
    assert prepared.masks.keys() == given.keys()
    assert all(torch.equal(mask, given[name]) for name, mask in prepared.masks.items())
    assert len(prepared.schedule) == 1 and prepared.allocation is None


def test_masks_that_are_made_fit_the_last_of_the_stages():
    prepared = prepare(small_resnet(), [random_images(4)], PruneSettings(pattern="1:4", stages=2))
    assert prepared.schedule[-1] == NM(1, 4) and len(prepared.schedule) == 2
    assert prepared.masks.keys() == {entry.name for entry in prepared.layers} and "fc" not in prepared.masks
    assert all(mask.sum() * 4 == mask.numel() for mask in prepared.masks.values())
