"""trace.py: the graph computes what the network computes, leaves the network alone, and says what it cannot do."""

import copy

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn import functional as F
from toys import SmallResNet, awake, random_images, small_resnet, small_vit, torch_attention

from snows_core.errors import SnowsError
from snows_core.network.graph import Network
from snows_core.network.operations import Kind
from snows_core.network.trace import trace


class InPlace(nn.Module):
    """One way to write over a live value that is read again afterwards."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        z = self.way(self, y)
        return self.last(y * 2 + z)


def _iadd(module, y):
    z = y
    z += 1.5
    return z


WAYS = {
    "module flag": lambda module, y: module.relu(y),
    "function flag": lambda module, y: F.relu(y, inplace=True),
    "positional flag": lambda module, y: F.leaky_relu(y, 0.1, True),
    "method": lambda module, y: y.relu_(),
    "add_": lambda module, y: y.add_(0.5),
    "mul_": lambda module, y: y.mul_(0.5),
    "clamp_": lambda module, y: y.clamp_(min=-0.1),
    "iadd": _iadd,
    "torch.relu_": lambda module, y: torch.relu_(y),
    "torch.sigmoid_": lambda module, y: torch.sigmoid_(y),
    "F.elu_": lambda module, y: F.elu_(y),
}


@pytest.mark.parametrize("way", WAYS)
def test_in_place_operations_become_ordinary_ones_with_the_same_result(way):
    # Trap: a live value must not change under the solver; later readers of the overwritten value see the new one.
    torch.manual_seed(0)
    model = InPlace(WAYS[way]).double().eval()
    images = random_images(2)
    graph = trace(model)
    assert torch.allclose(graph(images.clone()), model(images.clone()), rtol=1e-12, atol=1e-12)
    network = Network(model)
    values = {network.image: images}
    network.run(network.nodes[1:], values)
    for node in network.nodes[1:]:  # running one node again from the values at hand gives what it gave
        again = network.run((node,), dict(values))[node]
        assert torch.equal(again, values[node]), f"{node} wrote over its input"


def test_adding_to_a_size_in_place_is_not_mistaken_for_a_tensor():
    class Sizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 12)

        def forward(self, x):
            n, width = x.shape[0], x.shape[1]
            rest = width
            rest *= x.shape[2] * x.shape[3]
            return self.fc(x.reshape(n, rest)) * width

    model = Sizes().double().eval()
    images = random_images(2, size=2)
    assert torch.allclose(trace(model)(images), model(images))


@pytest.mark.parametrize("make, size", [(small_resnet, 8), (small_vit, 4), (torch_attention, 8)])
def test_graph_equals_model_and_leaves_it_unchanged(make, size):
    model = make()
    before = copy.deepcopy(model.state_dict())
    kind, flags = type(model), [getattr(m, "inplace", None) for m in model.modules()]
    images = random_images(3, size)
    original = images.clone()
    expected = model(images)
    graph = trace(model)
    assert torch.allclose(graph(images), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(images, original)
    assert type(model) is kind and [getattr(m, "inplace", None) for m in model.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert set(dict(graph.named_parameters())) <= set(dict(model.named_parameters()))
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in graph.parameters()), "the graph shares weights with the model"


def test_batch_norm_statistics_do_not_move():
    model = small_resnet()
    mean = model.bn1.running_mean.clone()
    Network(model).module(random_images(4))
    assert torch.equal(model.bn1.running_mean, mean)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_multihead_attention_spelled_out_equals_the_module(batch_first, bias):
    # Fault 3 of the published code: solved attention weights were lost. Here the stacked projection is a layer.
    model = torch_attention(batch_first=batch_first, bias=bias)
    images = random_images(3)
    network = Network(model)
    assert torch.allclose(network.module(images), model(images), rtol=1e-12, atol=1e-12)
    names = {layer.name: layer.weight_name for layer in network.layers}
    assert names["attn.in_proj_weight"] == "attn.in_proj_weight"
    assert names["attn.out_proj"] == "attn.out_proj.weight"
    assert Kind.ATTENTION in network.kinds.values()


def test_fused_norm_activation_is_split_in_two():
    model = awake(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.SiLU), nn.Conv2d(4, 2, 1)))
    network = Network(model)
    assert torch.allclose(network.module(random_images(2)), model(random_images(2)))
    assert list(network.kinds.values()) == [Kind.CONVOLUTION, Kind.ACTIVATION, Kind.CONVOLUTION]


def test_optional_forward_arguments_are_left_at_their_defaults():
    class Extras(SmallResNet):
        def forward(self, x, scale=None, flag: bool = False):
            y = super().forward(x)
            return y if scale is None else y * scale

    model = awake(Extras())
    assert torch.allclose(trace(model)(random_images(2)), model(random_images(2)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.fc(x)
        return x


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.inner = Branching()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inner(self.conv(x).mean((2, 3))))


def test_a_module_that_cannot_be_traced_becomes_a_leaf_with_a_warning_that_names_the_line():
    model = Wrapper().double().eval()
    line = r"'inner' \(Branching, 1 layer; .*test_trace\.py, line \d+: if x\.sum\(\) > 0"
    with pytest.warns(UserWarning, match=line):
        network = Network(model)
    assert [layer.name for layer in network.layers] == ["conv", "head"]
    assert torch.allclose(network.module(random_images(2)), model(random_images(2)))


@pytest.mark.parametrize("leaves", ["inner", ["inn*"], [Branching], Branching])
@pytest.mark.filterwarnings("error")
def test_leaf_modules_by_name_glob_and_class(leaves):
    model = Wrapper().double().eval()
    graph = trace(model, leaves)
    assert torch.allclose(graph(random_images(2)), model(random_images(2)))


def test_bad_models_are_refused():
    with pytest.raises(SnowsError, match=r"model: got str; expected a torch\.nn\.Module"):
        trace("resnet50")
    with pytest.raises(SnowsError, match=r"model: got a model in train mode; expected a model in eval mode\. Call"):
        trace(SmallResNet().train())
    with pytest.raises(SnowsError, match="without a convolution or linear layer"):
        Network(nn.Sequential(nn.ReLU()).eval())


def test_a_part_in_train_mode_is_refused_before_its_statistics_move():
    model = small_resnet()
    model.layer1.bn1.train()
    with pytest.raises(SnowsError, match=r"train mode"):
        trace(model)
