"""The K-step loss and its targets against hooks on the modules themselves, for both recipes and every residual unit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import awake, layer_named, make_problem, nudged, random_images, random_mask, small_resnet

import snows_core as snows
from snows_core.graph import Network
from snows_core.residual import restart

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


class Unit(nn.Module):
    """A residual unit whose branch has two convolutions; its shortcut is the identity."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Units(nn.Module):
    """Stem, two residual units, classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second, self.fc = nn.Conv2d(3, 4, 3, padding=1), Unit(), Unit(), nn.Linear(4, 3)
        awake(self)

    def forward(self, x):
        return self.fc(self.second(self.first(self.stem(x))).mean((2, 3)))


def test_published_targets_of_every_layer_start_at_the_input_of_its_unit():
    # Each layer's loss at its masked weights, K = 1, with everything before it pruned already: no graph, no stream.
    dense, images = Units(), random_images(10)
    masks = {f"{unit}.{name}": random_mask((4, 4, 3, 3), 0.5, i) for i, (unit, name) in
             enumerate((unit, name) for unit in ("first", "second") for name in "ab")}  # fmt: skip
    result = snows.prune(dense, images, masks=masks, k=1, recipe="paper", cg_iterations=3, progress=False)
    rows = result.report.set_index("layer")
    with torch.no_grad():
        inputs = result.model.stem(images)
        for unit in ("first", "second"):
            pruned, whole = result.model.get_submodule(unit), dense.get_submodule(unit)
            masked = {name: whole.get_submodule(name).weight * masks[f"{unit}.{name}"] for name in "ab"}
            target = whole.a(inputs)
            got = F.conv2d(inputs, masked["a"], whole.a.bias, padding=1)
            expected = F.mse_loss(got, target) + F.mse_loss(got.relu(), target.relu())
            assert rows.loc[f"{unit}.a", "loss_masked"] == pytest.approx(float(expected), rel=1e-9)
            hidden = pruned.a(inputs).relu()
            got, target = F.conv2d(hidden, masked["b"], whole.b.bias, padding=1), whole.b(target.relu())
            expected = F.mse_loss(got, target)
            if unit == "first":  # next comes the second unit's convolution, still dense; a classifier does not count
                expected += F.mse_loss(dense.second.a(inputs + got), dense.second.a(inputs + target))
            assert rows.loc[f"{unit}.b", "loss_masked"] == pytest.approx(float(expected), rel=1e-9)
            inputs = pruned(inputs)


def test_a_restart_runs_no_more_than_the_taps_need():
    network = Network(small_resnet())
    for name in ("layer1.conv2", "layer2.conv1"):
        for k in (0, 1, 3):
            segment = network.segment(layer_named(network, name), k, "published")
            unit = restart(network, segment)
            assert list(unit.nodes) == sorted(unit.nodes, key=network.index.__getitem__)
            assert set(segment.taps) <= set(unit.nodes)
            for node in unit.nodes:
                assert node in segment.taps or set(node.users) & set(unit.nodes), "somebody reads it"
            assert set(unit.reads).isdisjoint(unit.nodes)


def test_the_probe_of_row_curvature_is_the_mean_square_of_the_jacobian():
    # H_ii ~ s_i X X', with s_i the mean over images and positions of sum_k 2 c_k |dY_k / dz_i|^2.
    model, images = small_resnet(), random_images(3, 4)
    problem = make_problem(model, images, "layer2.conv1", 3)
    weight, generator = nudged(problem.weight), torch.Generator().manual_seed(0)
    got = torch.stack([problem.objective.row_curvature(weight, generator) for _ in range(400)]).mean(0)

    def taps(z):
        out = model.layer2.bn1(z)
        y = [out, out.relu()]
        y.append(model.layer2.bn2(model.layer2.conv2(y[-1])))
        y.append((y[-1] + model.layer2.downsample(before)).relu())
        return [value / value.numel() ** 0.5 for value in y]

    with torch.no_grad():
        before = model.layer1(F.relu(model.bn1(model.conv1(images))))
        z = F.conv2d(before, weight, stride=2, padding=1)
    taken = problem.segment.taps
    assert len(taken) == 4
    jacobians = torch.autograd.functional.jacobian(lambda z: tuple(taps(z)), z)
    squares = sum(2 * j.flatten(0, 3).square().sum(0) for j in jacobians)
    expected = squares.transpose(0, 1).flatten(1).mean(1)
    assert torch.allclose(got, expected, rtol=0.1)
