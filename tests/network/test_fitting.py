"""fitting.py: masks set weights to zero, exactly and in a copy, under every name they go by, or are refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from toys import random_images, random_mask, small_resnet, torch_attention

import snows_core as snows
from snows_core.errors import SnowsError

MASK = random_mask((4, 4, 3, 3))


def test_apply_masks_only_zeroes_and_leaves_the_model_alone():
    model = small_resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = {"layer1.conv1": MASK, "fc.weight": random_mask((3, 8))}
    pruned = snows.apply_masks(model, masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(pruned.layer1.conv1.weight, before["layer1.conv1.weight"] * MASK)
    assert torch.equal(pruned.fc.weight, model.fc.weight * masks["fc.weight"])
    assert torch.equal(pruned.layer1.conv2.weight, model.layer1.conv2.weight)
    with torch.no_grad():
        for value in pruned.state_dict().values():
            value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the copy aliases"


def test_apply_masks_takes_the_masks_of_a_result(few_images_are_fine):
    made = snows.prune(torch_attention(), random_images(8), k=0, progress=False, effort="quick")
    masked = snows.apply_masks(torch_attention(), made.masks, made.weight_names)
    assert float((masked.attn.in_proj_weight == 0).float().mean()) == 0.5


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "key",
    [
        "layer1.conv1",
        "layer1.conv1.weight",
        "layer1.conv1.weight_mask",
        "module.layer1.conv1.weight",
        "layer1._orig_mod.conv1",
    ],
)
def test_masks_of_0_and_1_in_any_type_and_spelling(dtype, key):
    model = small_resnet()
    pruned = snows.apply_masks(model, {key: MASK.to(dtype)})
    assert torch.equal(pruned.layer1.conv1.weight, model.layer1.conv1.weight * MASK)
    assert pruned.layer1.conv1.weight.dtype == torch.float64


def test_removed_weights_are_zero_whatever_they_were():
    model = small_resnet().half()
    with torch.no_grad():
        model.layer1.conv1.weight[~MASK] = float("inf")
    pruned = snows.apply_masks(model, {"layer1.conv1": MASK})
    assert (pruned.layer1.conv1.weight[~MASK] == 0).all() and pruned.layer1.conv1.weight.dtype == torch.float16


@pytest.mark.parametrize("name", ["0", "0.weight", "1", "1.weight"])
def test_a_tied_weight_goes_by_any_of_its_names(name):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mask = random_mask((4, 4))
    pruned = snows.apply_masks(model, {name: mask})
    assert pruned[0].weight is pruned[1].weight and torch.equal(pruned[1].weight, model[0].weight * mask)


def test_models_in_wrappers_or_with_hooks_of_prune_are_copied_too():
    plain = small_resnet()
    for model in (nn.DataParallel(plain), torch.compile(plain, backend="eager")):
        pruned = snows.apply_masks(model, {"layer1.conv1": MASK})
        inside = next(iter(pruned.children()))
        assert torch.equal(inside.layer1.conv1.weight, plain.layer1.conv1.weight * MASK)
    hooked = copy.deepcopy(plain)
    torch_prune.l1_unstructured(hooked.layer1.conv2, "weight", 0.5)
    pruned = snows.apply_masks(hooked, {"layer1.conv1": MASK})
    assert torch.equal(pruned.layer1.conv1.weight, plain.layer1.conv1.weight * MASK)
    assert float((pruned.layer1.conv2.weight == 0).float().mean()) == 0.5


def test_a_network_of_a_single_layer_has_the_empty_name():
    model, mask = nn.Linear(4, 2), random_mask((2, 4))
    for name in ("", "weight"):
        assert torch.equal(snows.apply_masks(model, {name: mask}).weight, model.weight * mask)


@pytest.mark.parametrize(
    "masks, message",
    [
        (
            {"conv9": torch.ones(1)},
            r"masks: got 'conv9' of shape \(1,\); expected names and shapes of this model's weig"
            r"hts\. Nearest: conv1",
        ),
        ({"fc": torch.ones(2, 2)}, r"'fc' of shape \(2, 2\); expected .* 'fc\.weight' is of shape \(3, 8\)\."),
        ({"fc": torch.full((3, 8), 2)}, r"masks: got the value 2 in 'fc'; expected a mask of nothing but 0"),
        ({"fc": torch.full((3, 8), 0.5)}, r"masks: got the value 0\.5 in 'fc'"),
        ({"fc": torch.full((3, 8), float("nan"))}, r"masks: got the value nan in 'fc'"),
        ({"fc": torch.full((3, 8), -1)}, r"masks: got the value -1 in 'fc'"),
        ({"fc": [[True] * 8] * 3}, r"masks: got a list for 'fc'; expected a bool tensor"),
        ([torch.ones(3, 8)], r"masks: got a list; expected a dictionary of masks"),
    ],
)
def test_masks_that_are_none_are_refused(masks, message):
    with pytest.raises(SnowsError, match=message):
        snows.apply_masks(small_resnet(), masks)
