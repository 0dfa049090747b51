"""folded_segment.py: a segment with batch norm folded computes what the segment computes, and so do its derivatives."""

import pytest
import torch
from timm.layers import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from toys import awake, layer_named, make_problem, nudged, random_images, relative, small_resnet, small_vit

from snows_core.loss.folded_segment import FoldedSegment, batch_norm_affine
from snows_core.network.graph import Network


def both_ways(problem, weight):
    """Tap outputs by the program, and by the graph as it stands."""
    context = problem.pruned.context(problem.segment, 0)
    got = problem.objective.program.run(context, weight)
    values = dict(context)
    problem.network.run(problem.segment.nodes, values, {problem.layer.weight_name: weight})
    return got, [values[tap] for tap in problem.segment.taps]


@pytest.mark.parametrize("rule", ["all", "published"])
@pytest.mark.parametrize("k", [0, 1, 3, 50])
def test_every_layer_of_a_residual_network_gives_the_graphs_own_taps(k, rule):
    model, images = small_resnet(), random_images(3)
    for layer in Network(model).layers:
        problem = make_problem(model, images, layer.name, k, rule=rule)
        weight = nudged(problem.weight)
        for got, expected in zip(*both_ways(problem, weight), strict=True):
            assert relative(got, expected) < 1e-12


class Norms(nn.Module):
    """Batch norm where it can be folded and where it cannot."""

    def __init__(self):
        super().__init__()
        self.same = Conv2dSame(3, 4, 3, stride=2)  # not a plain convolution
        self.bn1 = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.act = BatchNormAct2d(4, act_layer=nn.GELU)  # a function in the graph
        self.twice = nn.Conv2d(4, 4, 1)
        self.bn2 = nn.BatchNorm2d(4, affine=False)
        self.alone = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.bn3 = nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.act(self.conv(self.bn1(self.same(x))))
        y = self.twice(x)
        x = self.alone(self.bn2(y) + y)
        return self.bn3(self.fc(x.mean((2, 3))))


def norms():
    model = awake(Norms())
    model.bn3.running_var = 0.5 + torch.rand(5, dtype=torch.float64)
    model.bn3.running_mean = torch.randn(5, dtype=torch.float64)
    return model


@pytest.mark.parametrize("name", ["same", "conv", "twice", "fc"])
def test_batch_norms_of_every_kind(name):
    problem = make_problem(norms(), random_images(3), name, 50)
    for got, expected in zip(*both_ways(problem, nudged(problem.weight)), strict=True):
        assert relative(got, expected) < 1e-12


def test_folded_are_those_behind_plain_layers_with_no_other_reader():
    network = Network(norms())
    program = FoldedSegment(network, network.segment(layer_named(network, "same"), 50))
    folded = {str(node.target) for node in program.folded}
    assert folded == {"conv", "same"}, "behind a linear layer axis 1 may hold tokens"


def test_gradients_pass_through_folded_batch_norm():
    problem = make_problem(norms(), random_images(3), "conv", 50)
    weight = nudged(problem.weight).requires_grad_(True)
    got, expected = both_ways(problem, weight)
    one = torch.autograd.grad(sum(value.square().sum() for value in got), weight, retain_graph=True)[0]
    other = torch.autograd.grad(sum(value.square().sum() for value in expected), weight)[0]
    assert relative(one, other) < 1e-12


def test_affine_form_of_modules_and_functions():
    network = Network(norms())
    norm = [node for node in network.nodes if batch_norm_like(node)]
    values = network.run(network.nodes[1:], {network.image: random_images(2)})
    assert len(norm) == 5
    for node in norm:
        scale, shift = batch_norm_affine(network, node)
        x = values[node.all_input_nodes[0]]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        assert torch.allclose(x * scale.view(shape) + shift.view(shape), values[node], rtol=1e-12, atol=1e-12)


def batch_norm_like(node):
    from snows_core.network.operations import is_batch_norm

    return is_batch_norm(node)


def test_batch_statistics_in_eval_mode_are_left_as_they_are():
    model = awake(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    model[1].running_mean = model[1].running_var = None
    network = Network(model)
    assert batch_norm_affine(network, network.nodes[2]) is None
    problem = make_problem(model, random_images(3), "0", 2)
    for got, expected in zip(*both_ways(problem, nudged(problem.weight)), strict=True):
        assert relative(got, expected) < 1e-12


@pytest.mark.parametrize("sign", [1, -1])
def test_published_taps_observe_a_convolution_before_its_batch_norm(sign):
    # FACTS section 2: taps are the outputs of Conv2d and ReLU modules. Behind the batch norm, each channel's error is
    # divided by its scale: the same number.
    model, images = small_resnet(), random_images(4)
    with torch.no_grad():
        model.layer1.bn1.weight[0] *= sign
    problem = make_problem(model, images, "layer1.conv1", 4, rule="published")
    weight = nudged(problem.weight)
    seen = {}

    def catch(name):
        return lambda module, args, out: seen.setdefault(name, []).append(out.clone())

    names = ["layer1.conv1", "layer1.relu", "layer1.conv2", "layer2.conv1"]
    hooks = [model.get_submodule(name).register_forward_hook(catch(name)) for name in names]
    with torch.no_grad():
        model(images)
        torch.func.functional_call(model, {"layer1.conv1.weight": weight}, (images,))
    for hook in hooks:
        hook.remove()
    calls = {name: len(values) // 2 for name, values in seen.items()}
    pairs = [(values[i + calls[name]], values[i]) for name, values in seen.items() for i in range(calls[name])]
    expected = sum(float((got - target).square().mean()) for got, target in pairs)
    assert problem.objective.value(weight) == pytest.approx(expected, rel=1e-10)
    assert problem.objective.linearise(weight).loss == pytest.approx(expected, rel=1e-10)


def test_a_channel_that_its_batch_norm_switches_off_does_not_blow_the_published_loss_up():
    model = small_resnet()
    with torch.no_grad():
        model.layer1.bn1.weight[1] = 0.0
    problem = make_problem(model, random_images(4), "layer1.conv1", 4, rule="published")
    at = problem.objective.linearise(nudged(problem.weight))
    assert torch.isfinite(at.gradient).all() and at.loss < 1e6


def test_values_are_dropped_after_their_last_use():
    problem = make_problem(small_vit(), random_images(2, 4), "blocks.0.attn.qkv", 7)
    program = problem.objective.program
    values, node = program.start(problem.pruned.context(problem.segment, 0), problem.weight)
    program.finish(values, node)
    read_later = {source for user in program.steps for source in user.all_input_nodes}
    assert set(values) <= set(problem.segment.taps) | (set(values) - read_later)


def test_batch_norm_over_tokens_is_not_folded_into_a_linear_layer():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc, self.bn = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 16), nn.BatchNorm1d(16)

        def forward(self, x):
            return self.bn(self.fc(self.embed(x).flatten(2).transpose(1, 2)))

    model = awake(Tokens())
    model.bn.running_var, model.bn.running_mean = torch.rand(16).double() + 0.5, torch.randn(16).double()
    problem = make_problem(model, random_images(2), "fc", 0)  # 16 tokens of 16 features
    assert problem.objective.value(problem.weight) < 1e-20
