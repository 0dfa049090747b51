"""Channels: any permutation of those that are free leaves the function as it was, and what binds others is named."""

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.nn import functional as F
from toys import awake, random_images, small_resnet, small_vit, torch_attention

from snows_core.network import Network
from snows_core.network.channels import RESIDUAL, Channels


def shuffled(model, chains, seed=0):
    """Put the channels of all chains in an order by lot, in place."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for chain in chains:
        order = torch.randperm(chain.channels, generator=generator)
        assert not torch.equal(order, order.sort().values)
        for move in chain.moves:
            places = torch.cat([torch.arange(c * move.block, (c + 1) * move.block) for c in order.tolist()])
            assert tensors[move.name].shape[move.axis] == len(places)
            tensors[move.name].data = tensors[move.name].data.index_select(move.axis, places)


def checked(model, images):
    """Return the channels of a model, after a look that their permutation changes weights and no output."""
    channels = Channels(Network(model, example=images), images)
    with torch.no_grad():
        before, state = model(images), {name: value.clone() for name, value in model.state_dict().items()}
        shuffled(model, channels.chains)
        after = model(images)
    gap = float((after - before).abs().max() / before.abs().max())
    assert gap < 1e-10
    moved = {move.name for chain in channels.chains for move in chain.moves}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed <= moved and {chain.producer.weight_name for chain in channels.chains} <= changed
    return channels


def pairs(channels):
    return {chain.producer.name: [layer.name for layer in chain.consumers] for chain in channels.chains}


class Both(nn.Module):
    """Two layers read one value, one of them behind a pooling and a flattening of 2 x 2 positions."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.pool, self.linear = nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(2), nn.Linear(24, 5)

    def forward(self, x):
        y = F.relu(self.norm(self.first(x)))
        return self.second(y).mean((2, 3)) + self.linear(self.pool(y).flatten(1))


class Gated(nn.Module):
    """A value times a function of itself, in-place work, a shape that is asked for, and functional layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(6))
        self.act = nn.PReLU(6)

    def forward(self, x):
        y = self.act(F.conv2d(x, self.a, self.bias, padding=1))
        y = y * torch.sigmoid(y) + 0.5
        y.mul_(2.0)
        return F.linear(y.reshape(y.shape[0], 6, -1).mean(2), self.b)


def sequence(*layers):
    return awake(nn.Sequential(*layers))


FREE = {
    "residual units": (small_resnet, 8, {"layer1.conv1": ["layer1.conv2"], "layer2.conv1": ["layer2.conv2"]}),
    "MLPs of a transformer": (small_vit, 4, {f"blocks.{i}.mlp.fc1": [f"blocks.{i}.mlp.fc2"] for i in (0, 1)}),
    "MLP behind nn.MultiheadAttention": (torch_attention, 8, {"mlp.0": ["mlp.2"]}),
    "MLPs on images with channels last": (
        lambda: awake(timm.create_model("convnext_atto", depths=(1,) * 4, dims=(4, 8, 4, 8), conv_mlp=False)),
        32,
        {f"stages.{i}.blocks.0.mlp.fc1": [f"stages.{i}.blocks.0.mlp.fc2"] for i in range(4)},
    ),
    "two readers": (lambda: awake(Both()), 8, {"first": ["second", "linear"]}),
    "functions": (lambda: awake(Gated()), 8, {"a": ["b"]}),
    "depthwise with a multiplier": (
        lambda: sequence(
            nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
        ),
        8,
        {"0": ["4"]},
    ),
    "flattened images and a norm behind": (
        lambda: sequence(
            *(nn.Conv2d(3, 4, 2, 2), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(4)),
            *(nn.Dropout(), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)),
        ),
        6,
        {"0": ["6"], "6": ["8"]},
    ),
    "layers of timm": (
        lambda: sequence(
            Conv2dSame(3, 4, 3, 2), BatchNormAct2d(4), Conv2dSame(4, 6, 3, 2), nn.SiLU(), nn.Conv2d(6, 2, 1)
        ),
        8,
        {"0": ["2"], "2": ["4"]},
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_channels_that_are_free_may_be_in_any_order(name):
    make, size, expected = FREE[name]
    assert pairs(checked(make(), random_images(2, size))) == expected


def test_channels_of_resnet18_mobilenetv2_and_a_vit():
    torch.manual_seed(0)
    resnet = checked(awake(torchvision.models.resnet18()), random_images(2, 32))
    assert len(resnet.chains) == 8 and resnet.bound["layer1.1.conv1"] == RESIDUAL
    assert set(resnet.bound.values()) == {RESIDUAL, "the image"}
    mobile = checked(awake(torchvision.models.mobilenet_v2(width_mult=0.25)), random_images(2, 32))
    assert pairs(mobile)["features.2.conv.0.0"] == ["features.2.conv.2"]
    assert {f"features.{i}.conv.0.0": [f"features.{i}.conv.2"] for i in range(2, 18)}.items() <= pairs(mobile).items()
    assert pairs(mobile)["features.18.0"] == ["classifier.1"]
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    assert pairs(checked(awake(vit), random_images(2, 32))) == FREE["MLPs of a transformer"][2]


class Bound(nn.Module):
    """One convolution, and another that reads it in a way that ``between`` says."""

    def __init__(self, between, inputs=4, groups=1):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(inputs, 4, 1, groups=groups)
        self.third, self.scale = nn.Conv2d(4, 2, 1), nn.Parameter(torch.rand(4, 1, 1))
        self.between = between

    def forward(self, x):
        return self.third(self.second(self.between(self, self.first(x))))


def halves(model, x):
    one, other = x.chunk(2, 1)
    return torch.cat([other, one], 1)


BOUND = {
    "a sum of two layers": (lambda m, x: x + torch.relu(m.third(x)).mean(1, keepdim=True).expand_as(x), {}, RESIDUAL),
    "its halves": (halves, {}, "'cat'"),
    "softmax over channels": (lambda m, x: x.softmax(1), {}, "'softmax'"),
    "a sum over channels": (lambda m, x: x / x.sum(1, keepdim=True), {}, "'truediv'"),
    "a mean over channels": (lambda m, x: x.mean(1, keepdim=True), {"inputs": 1}, "'mean'"),
    "a parameter of its own": (lambda m, x: x * m.scale, {}, "'mul'"),
    "channels mixed by a view": (
        lambda m, x: x.view(x.shape[0], 2, 2, 8, 8).transpose(1, 2).reshape(x.shape),
        {},
        "'view'",
    ),
    "groups": (lambda m, x: x, {"groups": 2, "inputs": 4}, "'second'"),
    "gated linear units": (lambda m, x: F.glu(x, 1), {"inputs": 2}, "'glu'"),
    "rotated images": (lambda m, x: x.transpose(1, 3)[..., :4].transpose(1, 3), {}, "'getitem'"),
}


@pytest.mark.parametrize("name", BOUND)
def test_channels_that_are_bound_are_named_with_the_reason(name):
    between, options, why = BOUND[name]
    model, images = awake(Bound(between, **options)), random_images(2, 8)
    channels = Channels(Network(model, example=images), images)
    free = {} if name in ("a sum of two layers", "groups") else {"second": ["third"]}
    assert pairs(checked(model, images)) == pairs(channels) == free
    assert channels.bound["second"] == why and channels.bound["first"] == "the image"


def test_a_value_that_is_an_output_too_is_bound():
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.first(x)
            return {"features": y, "out": self.second(y)}

    images = random_images(2, 8)
    channels = Channels(Network(awake(Open()), example=images), images)
    assert not channels.chains and channels.bound["second"] == "the network's output"


@pytest.mark.parametrize("kind", ["tied", "twice", "hook", "parametrized"])
def test_weights_that_serve_twice_or_are_computed_are_bound(kind):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    if kind == "tied":
        model[2].weight = model[0].weight
    elif kind == "twice":
        model = nn.Sequential(*model[:4], model[2], model[3], model[4])
    elif kind == "hook":
        model[2].register_forward_hook(lambda module, args, out: out * torch.arange(4.0).view(1, 4, 1, 1))
    else:
        nn.utils.parametrizations.weight_norm(model[2])
    channels = checked(awake(model), random_images(2, 8, channels=4))
    assert not [one for one in channels.chains if "2" in (one.producer.name, *(layer.name for layer in one.consumers))]


def test_a_layer_of_ones_own_that_scales_its_outputs_may_read_channels_and_binds_its_own():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * torch.arange(1.0, 5.0, dtype=x.dtype).view(1, 4, 1, 1)

    model = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), Scaled(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert pairs(checked(model, random_images(2, 8))) == {"0": ["2"]}


def test_a_layer_of_ones_own_that_computes_what_its_class_does_passes_channels_on():
    class Own(nn.Conv2d):
        """Another name for the same."""

    model = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), Own(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert pairs(checked(model, random_images(2, 8))) == {"0": ["2"], "2": ["4"]}


def test_a_parameter_that_two_functions_read_is_bound():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Parameter(torch.randn(2, 3, 1, 1))

        def forward(self, x):
            return F.conv2d(F.relu(F.conv2d(F.relu(F.conv2d(x, self.w)), self.w)), self.v)

    assert not checked(awake(Twice()), random_images(2, 8)).chains


class Shifting(nn.Module):
    """A value that one layer reads by its weight, and another as its bias, number by number."""

    def __init__(self):
        super().__init__()
        self.value, self.reader, self.other = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(4, 6)
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        value = F.relu(self.value(x))
        return self.reader(value).sum(1) + F.linear(self.other(x), self.weight, bias=value).sum(1)


def test_a_value_that_a_layer_adds_as_its_bias_is_bound():
    torch.manual_seed(0)
    channels = checked(awake(Shifting()), torch.randn(3, 4, dtype=torch.float64))
    assert "value" not in pairs(channels) and "other" in pairs(channels)


class LastAxis(nn.Module):
    """Channels on the last axis, positions averaged away in front of them, or kept as axes of length 1."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        y = F.relu(self.first(x)).permute(0, 2, 3, 1).mean((1, 2), keepdim=self.keep)
        return self.head(F.relu(self.second(y))).flatten(1)


@pytest.mark.parametrize("keep", [False, True])
def test_channels_behind_averaged_positions_are_followed(keep):
    torch.manual_seed(0)
    channels = checked(awake(LastAxis(keep)), random_images(2, 8))
    assert pairs(channels) == {"first": ["second"], "second": ["head"]}
