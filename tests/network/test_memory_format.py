"""Channels last: the same values in another layout, and the usual layout where a network asks for it."""

import torch
from torch import nn

import snows_core as snows
from snows_core.network.graph import Network
from snows_core.network.memory_format import channels_last


class Net(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(64, 5)
        self.flatten = flatten

    def forward(self, x):
        return self.head(self.flatten(self.second(self.first(x).relu()).relu()))


def reshaped(x):
    return x.flatten(1)


def viewed(x):
    return x.view(x.shape[0], -1)


def is_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_weights_and_images_change_layout_and_keep_their_values():
    torch.manual_seed(0)
    model, images = Net(reshaped).eval(), torch.randn(5, 3, 6, 6)
    network = Network(model)
    moved = channels_last(network, images)
    assert is_last(moved) and is_last(network.module.second.weight)
    assert torch.equal(moved, images) and torch.equal(network.module.second.weight, model.second.weight)
    torch.testing.assert_close(network.module(moved), model(images))


def test_a_network_that_views_its_activations_keeps_the_usual_layout():
    torch.manual_seed(0)
    model, images = Net(viewed).eval(), torch.randn(5, 3, 6, 6)
    network = Network(model)
    assert channels_last(network, images) is images
    assert network.module.second.weight.is_contiguous()
    assert (
        snows.prune(model, images, "2:4", layers="second", k=2, progress=False, effort="quick").report["products"].max()
        > 0
    )


def test_a_network_of_linear_layers_is_left_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    images = torch.randn(3, 3, 2, 2)
    assert channels_last(Network(model), images) is images


def test_the_pruned_model_keeps_the_layout_of_the_users_model():
    torch.manual_seed(0)
    model, images = Net(reshaped).eval(), torch.randn(8, 3, 6, 6)
    result = snows.prune(model, images, "2:4", layers="second", k=2, progress=False, effort="quick")
    assert result.model.second.weight.is_contiguous() and model.second.weight.is_contiguous()
