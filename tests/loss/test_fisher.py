"""fisher.py: in the mean over random signs, the sum over images, pixels and classes of squared gradients."""

import pytest
import torch
from torch import nn
from toys import Wrapped, awake, nudged, random_images, small_resnet

from snows_core.errors import SnowsError
from snows_core.loss import fisher
from snows_core.network.graph import Network


def pixels():
    return awake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)))


NETWORKS = {
    "classes": (small_resnet, "layer2.conv1.weight"),
    "one logit": (lambda: small_resnet(classes=1), "layer2.conv1.weight"),
    "pixels": (pixels, "0.weight"),
}


def exact(model, name, weight, images):
    """A gradient for every image, pixel and class, weighed by the dense network's probability."""
    free, total = weight.clone().requires_grad_(True), torch.zeros_like(weight)
    for x in images.split(1):
        pair = []
        for weights in ({}, {name: free}):
            logits = torch.func.functional_call(model, weights, (x,))
            logits = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
            pair.append(logits.reshape(*logits.shape[:2], -1)[0].T)  # (positions, classes)
        dense, own = pair[0].softmax(1).detach(), pair[1].log_softmax(1)
        for place in range(len(own)):
            for label in range(own.shape[1]):
                (slope,) = torch.autograd.grad(own[place, label], free, retain_graph=True)
                total += dense[place, label] * slope.square()
    return total / len(images)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("moved", [False, True])
def test_the_mean_is_the_loop_over_images_and_classes(kind, moved):
    make, name = NETWORKS[kind]
    model, images = make(), random_images(5, 6)
    dense = model.get_parameter(name).detach()
    weight = nudged(dense, 0.5) if moved else dense
    generator = torch.Generator().manual_seed(0)
    found = fisher.diagonal_fisher(Network(model, example=images[:2]), {name: weight}, images, generator, 800)[name]
    wanted = exact(model, name, weight, images)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_the_signal_has_the_second_moment_of_a_drawn_label():
    dense, own = (torch.tensor(p, dtype=torch.float64) for p in ([0.7, 0.2, 0.1], [0.4, 0.5, 0.1]))
    many = 40_000
    signal = fisher.output_signal(dense.expand(many, 3), own.expand(many, 3), torch.Generator().manual_seed(0))
    errors = torch.eye(3, dtype=torch.float64) - own  # onehot(y) - p_w, one row a label
    wanted = (dense[:, None, None] * errors[:, :, None] * errors[:, None, :]).sum(0)
    torch.testing.assert_close(signal.T @ signal / many, wanted, rtol=0, atol=0.01)


def test_images_whose_gradients_are_large_are_taken_fewer_at_a_time(monkeypatch):
    model, images = small_resnet(), random_images(5, 6)
    network, sizes = Network(model, example=images[:2]), []
    weights = {"layer1.conv1.weight": model.layer1.conv1.weight.detach()}
    original = fisher.network_scores
    monkeypatch.setattr(fisher, "network_scores", lambda n, x, *w: sizes.append(len(x)) or original(n, x, *w))
    fisher.diagonal_fisher(network, weights, images, torch.Generator())
    assert max(sizes) == 5
    sizes.clear()
    monkeypatch.setattr(fisher, "batch_bytes", lambda device: 1.0)
    fisher.diagonal_fisher(network, weights, images, torch.Generator())
    assert max(sizes) == 1


@pytest.mark.parametrize("form", [lambda y: (y, y), lambda y: y.argmax(1)])
def test_a_network_without_logits_is_refused_by_name(form):
    model, images = Wrapped(small_resnet(), form).eval(), random_images(4, 6)
    weights = {"net.layer1.conv1.weight": model.net.layer1.conv1.weight.detach()}
    with pytest.raises(SnowsError, match=r"^saliency 'fisher': got an output of .*; expected .*logits"):
        fisher.diagonal_fisher(Network(model, example=images[:2]), weights, images, torch.Generator())
