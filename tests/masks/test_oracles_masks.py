"""Masks of mixed scores, masks that stay the same over versions, and sources with more in them than weights."""

import copy

import pytest
import torch
from foreign import described
from torch import nn
from toys import random_mask, small_resnet

from snows_core.masks.given import foreign_masks
from snows_core.masks.lowest import comparable, highest_of_groups, lots, lowest, seed_of
from snows_core.masks.mask_values import read_mask
from snows_core.masks.patterns import NM, Unstructured, masks_for


def test_large_integers_beside_single_precision_are_compared_exactly():
    integers = 2**30 + torch.arange(8).view(1, 8)  # in single precision all of them are one number
    for other in (2**31 * (1 + torch.rand(2, 8)), 2**31 * (1 + torch.rand(2, 8)).bfloat16()):
        masks = Unstructured(0.17, "global").masks({"a": integers, "b": other})
        assert masks["a"].int().tolist() == [[0] * 4 + [1] * 4] and masks["b"].all(), "4 of 24 go"


def test_lots_stay_what_they_are_from_version_to_version():
    # A run that is resumed, or repeated with a newer version, has to come to the same masks.
    assert seed_of(0, "layer1.conv1") == 0x5A9EA7F0CDFB3D2D
    ones = {"a": torch.ones(2, 8)}
    for pattern, expected in (
        (NM(2, 4), [[1, 0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1, 0, 1]]),
        (Unstructured(0.5), [[0, 1, 1, 0, 0, 1, 0, 1], [1, 1, 0, 0, 1, 0, 1, 0]]),
    ):
        assert masks_for(ones, pattern)["a"].int().tolist() == expected


def test_of_equal_scores_the_lowest_lots_go_and_of_groups_the_lowest_stay():
    scores, drawn = torch.tensor([1, 0, 1, 1, 2, 1, 1]), lots(7, 5)
    tied = [0, 2, 3, 5, 6]
    for count in range(1, 7):
        expected = {1, *sorted(tied, key=lambda i: drawn[i])[: count - 1]}
        assert set(lowest(scores, count, 5).nonzero().flatten().tolist()) == expected
    groups = torch.tensor([[3, 1, 1, 1, 0], [1, 2, 2, 2, 2]])
    drawn = lots(10, 5).view(2, 5)
    for keep in (1, 2, 3, 4):
        for row, got in enumerate(highest_of_groups(groups, keep, 5)):
            order = sorted(range(5), key=lambda i, row=row: (-int(groups[row, i]), float(drawn[row, i])))
            assert set(got.nonzero().flatten().tolist()) == set(order[:keep])


def test_scores_keep_their_type_where_every_device_orders_it():
    for given, kept in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int8, torch.int64),
        (torch.bool, torch.int64),
    ):
        assert comparable(torch.ones(2).to(given)).dtype == kept
    assert not comparable(torch.ones(2, requires_grad=True)).requires_grad


def test_nothing_and_everything_can_be_marked():
    scores = torch.rand(3, 4)
    assert not lowest(scores, 0, 0).any() and lowest(scores, 12, 0).all()
    assert lowest(scores, 12, 0).shape == (3, 4)


def test_a_plain_tensor_that_a_module_carries_is_no_weight():
    model = small_resnet()
    pruned = copy.deepcopy(model)
    mask = random_mask((3, 8))
    with torch.no_grad():
        pruned.fc.weight.mul_(mask)
    pruned.fc.cache, pruned.layer1.scratch = torch.zeros(4, 4), torch.ones(2)
    found = foreign_masks(pruned, *described(model))
    assert found.keys() == {"fc"} and torch.equal(found["fc"], mask)


def test_old_weight_norm_counts_by_the_weight_it_computes_and_names_no_parts():
    model = small_resnet()
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned.fc.weight.mul_(random_mask((3, 8)))
    zeros = pruned.fc.weight == 0
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(pruned.fc)
    found = foreign_masks(pruned, *described(model))
    assert found.keys() == {"fc"} and torch.equal(found["fc"], ~zeros)


def test_masks_are_of_bool_and_their_own():
    for value in (torch.ones(2, 2), torch.zeros(3, dtype=torch.int8), torch.tensor([0.0, 1.0])):
        read = read_mask("m", value)
        assert read.dtype == torch.bool and torch.equal(read, value == 1)
    same = torch.tensor([True, False])
    assert read_mask("m", same) is same


class Threshold(nn.Module):
    """A parametrization without a mask: weights near zero count as zero."""

    def forward(self, weight):
        return torch.where(weight.abs() < 0.3, 0.0, weight)


def test_a_parametrization_counts_by_what_it_gives_not_by_what_it_is_given():
    model = small_resnet()
    pruned = copy.deepcopy(model)
    nn.utils.parametrize.register_parametrization(pruned.fc, "weight", Threshold())
    found = foreign_masks(pruned, *described(model))
    assert found.keys() == {"fc"} and torch.equal(found["fc"], model.fc.weight.abs() >= 0.3)
    pruned.again, model.again = pruned.fc, model.fc  # one module under two names
    found = foreign_masks(pruned, *described(model))
    assert torch.equal(found["fc"], model.fc.weight.abs() >= 0.3)


def test_a_mask_beside_its_weight_is_the_mask_whatever_the_weight_holds():
    model, mask = small_resnet(), random_mask((3, 8))
    with torch.no_grad():
        model.fc.weight[0, 1] = 0.0
    for name in ("fc.weight_mask", "fc.mask"):
        for values in (mask, mask.float()):
            found = foreign_masks({"fc.weight": model.fc.weight.detach(), name: values}, *described(model))
            assert found.keys() == {"fc"} and torch.equal(found["fc"], mask)
