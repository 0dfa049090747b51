"""operations.py: what K counts, where an operation is observed, and which weight it multiplies by."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import awake, random_images, small_resnet, small_vit, torch_attention

from snows_core.network.graph import Network
from snows_core.network.operations import Kind, is_batch_norm, tap_of, weight_of

C, L, A, M, N = Kind.CONVOLUTION, Kind.LINEAR, Kind.ACTIVATION, Kind.ATTENTION, Kind.NORMALISATION


def kinds(model):
    return list(Network(model).kinds.values())


def test_residual_network_counts_convolutions_and_activations_but_not_additions_pooling_or_merged_batch_norm():
    block = [C, A, C, A]
    with_shortcut = [C, A, C, C, A]
    assert kinds(small_resnet()) == [C, A, *block, *with_shortcut, L]


def test_vision_transformer_counts_layer_norm_attention_product_and_mlp():
    block = [N, L, M, L, N, L, A, L]
    assert kinds(small_vit(depth=2)) == [C, *block, *block, N, L]


def test_torch_attention_is_spelled_out_into_two_linears_and_a_product():
    assert kinds(torch_attention()) == [C, N, L, M, L, L, A, L, L]


def test_attention_by_two_matrix_products_counts_once():
    vit = small_vit(depth=1)
    for block in vit.blocks:
        block.attn.fused_attn = False
    assert kinds(vit) == [C, N, L, M, L, N, L, A, L, N, L]


class Mixing(nn.Module):
    """Softmax attention written in one of the ways found in the wild."""

    def __init__(self, way):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.softmax = nn.Softmax(-1)
        self.drop = nn.Dropout(0.1)
        self.way = way

    def forward(self, x):
        y = self.embed(x).flatten(2).transpose(1, 2)
        return self.way(self, y @ y.transpose(1, 2), y)


@pytest.mark.parametrize(
    "way",
    [
        lambda m, scores, y: scores.softmax(-1) @ y,
        lambda m, scores, y: m.softmax(scores) @ y,
        lambda m, scores, y: torch.matmul(F.softmax(scores, -1), y),
        lambda m, scores, y: m.drop(torch.softmax(scores, -1)).matmul(y),
        lambda m, scores, y: torch.bmm(scores.softmax(-1).contiguous(), y),
        lambda m, scores, y: F.scaled_dot_product_attention(y, y, y),
    ],
)
def test_every_spelling_of_the_attention_product_counts_once(way):
    assert kinds(awake(Mixing(way))) == [C, M]


def test_a_product_without_softmax_is_no_attention():
    assert kinds(awake(Mixing(lambda m, scores, y: scores @ y))) == [C]


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.GELU(),
        nn.SiLU(),
        nn.Hardswish(),
        nn.PReLU(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.ELU(),
        nn.Mish(),
        nn.LeakyReLU(),
        nn.Softplus(),
    ],
)
def test_activation_modules_count(activation):
    assert kinds(awake(nn.Sequential(nn.Conv2d(3, 2, 1), activation))) == [C, A]


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "hardswish", "relu6", "mish", "elu", "leaky_relu", "tanh"])
def test_activation_functions_count(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return getattr(F, name)(self.conv(x))

    assert kinds(awake(Net())) == [C, A]


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.MaxPool2d(2), nn.Identity(), nn.Flatten(), nn.Softmax(1)])
def test_what_does_not_count(layer):
    assert kinds(awake(nn.Sequential(nn.Conv2d(3, 2, 1), layer))) == [C]


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.LayerNorm([2, 8, 8])])
def test_other_normalisations_count_on_their_own(norm):
    assert kinds(awake(nn.Sequential(nn.Conv2d(3, 2, 1), norm))) == [C, N]


def test_batch_norm_is_merged_behind_a_convolution_and_counts_elsewhere():
    merged = Network(awake(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU())))
    conv, norm = merged.nodes[1:3]
    assert list(merged.kinds.values()) == [C, A]
    assert is_batch_norm(norm) and tap_of(conv) is norm
    before = Network(awake(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))))  # pre-activation, DenseNet
    assert list(before.kinds.values()) == [N, A, C]


def test_a_convolution_read_twice_is_observed_before_its_batch_norm():
    class TwoReaders(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    network = Network(awake(TwoReaders()))
    node = network.layers[0].node
    assert tap_of(node) is node


def test_weight_of_stored_shared_and_computed_weights():
    class Ways(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.free = nn.Parameter(torch.randn(4, 4))
            self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))
            self.made = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x):
            y = F.conv2d(self.conv(x), self.kernel).mean((2, 3))
            y = F.linear(y, weight=self.free)
            return F.linear(self.made(y), self.free * 2)

    network = Network(awake(Ways()))
    assert [weight_of(layer.node) for layer in network.layers] == ["conv.weight", "kernel", "free", None, None]
    assert [layer.name for layer in network.layers][:3] == ["conv", "kernel", "free"]
    assert torch.isfinite(network.module(random_images(2))).all()
