"""Networks that were pruned elsewhere: their masks, and what ``foreign_masks`` is told about them."""

import copy

import torch
from torch import nn
from toys import random_mask

PRUNED = ("layer1.conv2", "layer2.conv1")


def described(model):
    """Return what foreign_masks is told about a model: weights, aliases, known names."""
    layers = {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return layers, {f"{name}.weight": name for name in layers}, list(model.state_dict())


def the_masks(model):
    return {name: random_mask(model.get_submodule(name).weight.shape, seed=i) for i, name in enumerate(PRUNED)}


def with_zeros(model):
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in the_masks(model).items():
            pruned.get_submodule(name).weight.mul_(mask)
    return pruned
