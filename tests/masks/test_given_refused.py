"""given.py: masks that do not fit a model are refused, with what was looked at and the nearest names."""

import pytest
import torch
from foreign import PRUNED, described, with_zeros
from torch import nn
from toys import random_mask, small_resnet

from snows_core.errors import SnowsError
from snows_core.masks.given import foreign_masks


@pytest.fixture(scope="module")
def model():
    return small_resnet()


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


MASK = random_mask((4, 4, 3, 3))
REFUSED = {
    "misspelt": (
        {"layer1.conv": ones(4, 4, 3, 3)},
        r"masks: got a mask for 'layer1\.conv'; expected names of layers of this model\. Nearest: layer1\.conv",
    ),
    "misspelt, floats": (
        {"layer1.conv1": MASK.float(), "layer1.conv": MASK.float()},
        r"got a mask for 'layer1\.conv'; .* Nearest: layer1\.conv",
    ),
    "misspelt weight_mask": (
        {"layer1.conv1.weight_mask": MASK, "layer9.conv.weight_mask": MASK.float()},
        r"got a mask for 'layer9\.conv\.weight_mask'; expected names of layers",
    ),
    "misspelt among weights": (
        {"layer1.conv1": MASK * torch.randn(4, 4, 3, 3), "layer1.kernel": torch.randn(4, 4, 3, 3)},
        r"got weights for 'layer1\.kernel'; expected names .* Nearest: layer1",
    ),
    "other prefix": ({"net.layer1.conv1": MASK}, r"got a mask for 'net\.layer1\.conv1'; .* Nearest: layer1\.conv1"),
    "shape": (
        {"layer1.conv1": ones(4, 4, 1, 1)},
        r"masks: got shape \(4, 4, 1, 1\) for 'layer1\.conv1'; expected \(4, 4, 3, 3\)",
    ),
    "shape, prefixed": (
        {"module.fc.weight": torch.ones(8, 3)},
        r"got shape \(8, 3\) for 'fc'; expected \(3, 8\)\. It was given as 'module\.fc\.weight'",
    ),
    "empty": (
        {"layer1.conv1": torch.zeros(4, 4, 3, 3)},
        r"masks: got a mask that leaves layer 'layer1\.conv1' empty; expected at least one kept weight",
    ),
    "doubling": ({"layer1.conv1.weight_mask": MASK * 2}, r"got the value 2 in 'layer1\.conv1\.weight_mask'; expected"),
    "soft": ({"layer1.conv1.weight_mask": MASK * 0.5}, r"got the value 0\.5 in 'layer1\.conv1\.weight_mask'"),
    "NaN mask": ({"layer1.conv1.weight_mask": MASK * float("nan")}, r"got the value nan in"),
    "NaN": ({"layer1.conv1": torch.full((4, 4, 3, 3), float("nan"))}, r"weights 'layer1\.conv1' with NaN or infinite"),
    "infinite": ({"fc.weight": torch.eye(3, 8) * float("inf")}, r"weights 'fc\.weight' with NaN or infinite"),
    "two that differ": (
        {"layer1.conv1": MASK, "layer1.conv1.weight": ~MASK | random_mask(MASK.shape, seed=8)},
        r"different masks for 'layer1\.conv1' under the names layer1\.conv1, layer1\.conv1\.weight",
    ),
    "two that differ, prefixed": (
        {
            "layer1.conv1": MASK,
            "module.layer1.conv1.weight_mask": random_mask(MASK.shape, seed=8),
            "layer1.conv1_mask": MASK,
        },
        r"different masks for 'layer1\.conv1'",
    ),
    "bias": (
        {"fc.bias_mask": torch.tensor([0.0, 1.0, 1.0]), "layer1.conv1": MASK},
        r"a mask with zeros for 'fc\.bias'; expected masks of convolution and linear weights\. Leave it out",
    ),
    "nothing": ({}, r"got no zeros in any layer of this model: none of the 0 entries given is the weight or mask"),
    "all ones": ({"fc": ones(3, 8)}, r"no zeros in any layer of this model: 1 of 7 layers were given \(fc\), and none"),
    "only biases": (
        {"fc.bias": torch.tensor([0.5, 0.0, 2.0])},
        r"none of the 1 entries given is the weight or mask of",
    ),
    "inside a checkpoint": (
        {"epoch": {"n": 1}, "state_dict": {"fc.weight": torch.randn(3, 8)}},
        r"got a dict under 'epoch'",
    ),
    "checkpoint": (
        {"state_dict": {"fc.weight": torch.randn(3, 8)}},
        r"got a dict under 'state_dict'; expected a dictionary of tensors\. Pass the dictionary under",
    ),
    "no data": ({"fc": torch.ones(3, 8, device="meta")}, r"got a tensor without data under 'fc'"),
    "list": (
        [1, 2],
        r"masks: got a list; expected a dict of masks, a pruned model, its state dict, a file of one",
    ),
    "path": ("masks.pt", r"masks: got 'masks.pt', which is no file; expected a .safetensors or .pth file"),
    "nested": (
        {"layer1.conv1": [[True]]},
        r"masks: got a list under 'layer1\.conv1'; expected a dictionary of tensors",
    ),
    "class": (nn.Linear, r"masks: got a type; expected"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_masks_that_do_not_fit_are_refused(model, what):
    masks, message = REFUSED[what]
    with pytest.raises(SnowsError, match=message):
        foreign_masks(masks, *described(model))


def test_a_dense_model_as_mask_is_refused_with_what_was_looked_at(model):
    message = r"7 of 7 layers were given \(conv1, fc, layer1\.conv1, layer1\.conv2 and 3 more\), and none of them has a"
    for dense in (model, nn.DataParallel(model), model.state_dict()):
        with pytest.raises(SnowsError, match=message):
            foreign_masks(dense, *described(model))


def test_without_known_names_those_of_a_state_dict_are_passed_over_and_masks_are_not(model):
    weights, aliases, _ = described(model)
    assert foreign_masks(with_zeros(model).state_dict(), weights, aliases).keys() == {*PRUNED}
    for other in (torch.zeros(3), torch.randn(3)):
        with pytest.raises(SnowsError, match=r"for 'other\.weight'; expected names of layers of this model"):
            foreign_masks({"other.weight": other}, weights, aliases)


def test_a_mask_of_a_parametrization_and_another_one_of_the_layer_must_agree():
    weight, one, other = torch.ones(4, 6), random_mask((4, 6), 0.5, 0), random_mask((4, 6), 0.5, 1)
    several = {"a.parametrizations.weight.0.mask": one, "a.parametrizations.weight.1.mask": other}
    found = foreign_masks(several, {"a": weight}, {"a.weight": "a"})
    assert torch.equal(found["a"], one & other), "those of parametrizations follow one another"
    with pytest.raises(SnowsError, match=r"masks: got different masks for 'a' under the names"):
        foreign_masks(
            {"a.parametrizations.weight.0.mask": one, "a.weight_mask": other}, {"a": weight}, {"a.weight": "a"}
        )
