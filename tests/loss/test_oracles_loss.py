"""The K-step loss and its targets against hooks on the modules themselves, for both recipes and every residual unit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import awake, layer_named, make_problem, nudged, random_images, random_mask, small_resnet

import snows_core as snows
from snows_core.network.graph import Network
from snows_core.network.residual import restart

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
    masks = {
        f"{unit}.{name}": random_mask((4, 4, 3, 3), 0.5, i)
        for i, (unit, name) in enumerate((unit, name) for unit in ("first", "second") for name in "ab")
    }
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


def test_the_probe_looks_at_as_many_batches_as_it_is_told():
    images = random_images(8, 4)
    objective = make_problem(small_resnet(), images.split([3, 3, 2]), "layer1.conv2", 2).objective
    weight = nudged(objective.network.weight(objective.segment.layer))

    def probe(loss, **options):
        return loss.row_curvature(weight, torch.Generator().manual_seed(0), **options)

    first = probe(objective)
    assert torch.equal(first, probe(objective, batches=1)) and objective.products == 0
    share = 3 / 8  # on() makes means over its own images; the probe is a mean over images too
    assert torch.allclose(first, share * probe(objective.on([0])), rtol=1e-12)
    two, three = probe(objective, batches=2), probe(objective, batches=3)
    assert not torch.allclose(first, two, rtol=1e-3) and not torch.allclose(two, three, rtol=1e-3)
    assert torch.equal(three, probe(objective, batches=9))
    assert torch.allclose(two, 0.75 * probe(objective.on([0, 1]), batches=2), rtol=1e-12)


def test_a_channel_that_nothing_depends_on_gets_a_small_positive_curvature():
    model = small_resnet()
    with torch.no_grad():
        model.layer1.bn1.weight[1] = 0.0  # folded: this channel of conv1 reaches nothing
    objective = make_problem(model, random_images(4, 4), "layer1.conv1", 2).objective
    found = objective.row_curvature(objective.network.weight(objective.segment.layer), torch.Generator())
    others = torch.cat([found[:1], found[2:]])
    assert float(found[1]) == pytest.approx(1e-6 * float(torch.cat([others, torch.zeros(1)]).mean()), rel=1e-5)
    assert (others > 1e3 * found[1]).all()


def test_losses_are_means_over_images_however_they_are_batched_and_retained():
    images, what = random_images(7, 4), ("layer1.conv2", 3)
    one = make_problem(small_resnet(), images, *what, normalise=True).objective
    for sizes in ([7], [4, 3], [2, 2, 2, 1]):
        for retain in (True, False, 0, 1, 2):
            several = make_problem(small_resnet(), images.split(sizes), *what, normalise=True, retain=retain)
            objective, weight = several.objective, nudged(several.weight)
            assert objective.value(weight) == pytest.approx(one.value(weight), rel=1e-10)
            assert objective.per_tap(weight) == pytest.approx(one.per_tap(weight), rel=1e-10)
            at, other = objective.linearise(weight), one.linearise(weight)
            assert at.loss == pytest.approx(other.loss, rel=1e-10)
            direction = nudged(weight)
            for a, b in ((at.gradient, other.gradient), (at.product(direction), other.product(direction))):
                assert float((a - b).abs().max() / b.abs().max()) < 1e-9
            assert objective.products == 1 and objective.image_products == 7


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tensor_cores_work_in_products_and_nowhere_else(monkeypatch, precision):
    images, seen = random_images(4, 4), {}
    objective = make_problem(small_resnet(), images, "layer1.conv2", 2, precision=precision, retain=False).objective
    weight, own = nudged(objective.network.weight(objective.segment.layer)), objective.folded.run

    def noted(*args):
        seen.setdefault("now", []).append(torch.backends.cuda.matmul.allow_tf32)
        return own(*args)

    monkeypatch.setattr(objective.folded, "run", noted)
    at = objective.linearise(weight)
    assert seen.pop("now") == [False]
    at.product(weight)
    assert seen.pop("now") == [precision == "tf32"] and not torch.backends.cuda.matmul.allow_tf32
