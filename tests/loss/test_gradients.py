"""gradients.py, gauss_newton_diagonal.py: image by image and class by class with autograd on the network itself."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Wrapped, awake, nudged, random_images, relative, small_resnet, small_vit, torch_attention

from snows_core.errors import SnowsError
from snows_core.loss import gauss_newton_diagonal as diagonals
from snows_core.loss.gradients import check_labels, drawn_labels, gradient_rows
from snows_core.network.graph import Network


def pixels():
    return awake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)))


NETWORKS = {
    "classes": (small_resnet, 8, ["layer1.conv1.weight", "layer2.downsample.0.weight"]),
    "one logit": (lambda: small_resnet(classes=1), 8, ["layer2.downsample.0.weight"]),
    "pixels": (pixels, 6, ["0.weight", "2.weight"]),
    "transformer": (small_vit, 4, ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight"]),
    "attention": (torch_attention, 4, ["attn.in_proj_weight"]),
}


def setting(kind, count=5):
    make, size, names = NETWORKS[kind]
    model, images = make(), random_images(count, size)
    weights = {name: nudged(model.get_parameter(name).detach(), 0.2) for name in names}
    return model, images, weights


def log_probabilities(model, weights, x):
    logits = torch.func.functional_call(model, weights, (x,))
    logits = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    return logits.log_softmax(1)


def one_gradient(model, weights, x, label):
    free = {name: weight.clone().requires_grad_(True) for name, weight in weights.items()}
    loss = F.nll_loss(log_probabilities(model, free, x[None]), label[None], reduction="sum")
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(free.values()))])


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_row_is_the_gradient_of_one_image(kind):
    model, images, weights = setting(kind)
    network = Network(model, example=images[:2])
    labels = drawn_labels(network, images, torch.Generator().manual_seed(0))
    assert labels.shape == log_probabilities(model, {}, images)[:, 0].shape
    found = gradient_rows(network, weights, images, labels, 100)
    wanted = torch.stack([one_gradient(model, weights, *pair) for pair in zip(images, labels, strict=True)])
    assert relative(found, wanted) < 1e-9


def test_rows_of_mini_batches_are_means_times_the_root_of_their_size():
    model, images, weights = setting("classes", 20)
    labels = torch.arange(20) % 3
    found = gradient_rows(Network(model, example=images[:2]), weights, images, labels, 2)
    single = torch.stack([one_gradient(model, weights, *pair) for pair in zip(images, labels, strict=True)])
    wanted = torch.stack([part.mean(0) * math.sqrt(10) for part in single.split(10)])
    assert relative(found, wanted) < 1e-9  # ten images are two passes of eight and two


def test_the_fisher_of_drawn_labels_is_the_expected_one_and_the_gauss_newton_matrix():
    model, images, weights = setting("classes", 3)
    weights = {name: model.get_parameter(name).detach() for name in weights}
    network, many = Network(model, example=images[:2]), 1500
    chances = log_probabilities(model, {}, images).exp().detach()
    by_class = torch.stack(
        [torch.stack([one_gradient(model, weights, x, torch.tensor(label)) for label in range(3)]) for x in images]
    )  # (images, classes, p)
    expected = torch.einsum("nc,ncp,ncq->pq", chances, by_class, by_class)

    def logits(*parts):
        return torch.func.functional_call(model, dict(zip(weights, parts, strict=True)), (images,))

    jacobians = torch.autograd.functional.jacobian(logits, tuple(weights.values()))
    jacobian = torch.cat([part.flatten(2) for part in jacobians], 2)  # (images, classes, p)
    covariance = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    assert relative(expected, torch.einsum("ncp,ncd,ndq->pq", jacobian, covariance, jacobian)) < 1e-9
    drawn = drawn_labels(network, images.repeat(many, 1, 1, 1), torch.Generator().manual_seed(3)).view(many, 3)
    counts = F.one_hot(drawn, 3).double().mean(0)
    found = torch.einsum("nc,ncp,ncq->pq", counts, by_class, by_class)
    assert float((found - expected).norm() / expected.norm()) < 0.05  # some 1 / sqrt(1500)


@pytest.mark.parametrize("kind", ["classes", "one logit", "transformer"])
def test_the_diagonal_is_that_of_the_dense_gauss_newton_matrix(kind):
    model, images, weights = setting(kind)
    found = diagonals.gauss_newton_diagonal(Network(model, example=images[:2]), weights, images, torch.Generator())

    def logits(*parts):
        made = torch.func.functional_call(model, dict(zip(weights, parts, strict=True)), (images,))
        return torch.cat([torch.zeros_like(made), made], 1) if made.shape[1] == 1 else made

    chances = log_probabilities(model, weights, images).exp()
    covariance = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    jacobians = torch.autograd.functional.jacobian(logits, tuple(weights.values()))
    for jacobian, got in zip(jacobians, found.values(), strict=True):
        wanted = torch.einsum("ncp,ncd,ndp->p", jacobian.flatten(2), covariance, jacobian.flatten(2)) / len(images)
        assert relative(got.flatten(), wanted) < 1e-9


def test_with_many_logits_random_signs_have_the_same_mean(monkeypatch):
    model, images, weights = setting("classes", 2)
    network = Network(model, example=images[:2])
    exact = diagonals.gauss_newton_diagonal(network, weights, images, torch.Generator())
    monkeypatch.setattr(diagonals, "FEW", 2)
    generator = torch.Generator().manual_seed(0)
    found = diagonals.gauss_newton_diagonal(network, weights, images.repeat(300, 1, 1, 1), generator)
    for name, wanted in exact.items():
        assert float((found[name] - wanted).norm() / wanted.norm()) < 0.1


def test_labels_that_are_no_classes_are_refused():
    model, images, _ = setting("classes")
    network = Network(model, example=images[:2])
    assert check_labels(network, images, torch.tensor([0, 2, 1])).tolist() == [0, 2, 1]
    with pytest.raises(SnowsError, match=r"^labels: got 3 \(2 such labels\); expected class indices 0 to 2"):
        check_labels(network, images, torch.tensor([0, 3, 3, 1]))
    with pytest.raises(SnowsError, match=r"^labels: got .*; expected class indices of shape"):
        check_labels(Network(pixels(), example=random_images(2, 6)), random_images(2, 6), torch.tensor([0, 1]))
    odd = Wrapped(small_resnet(), lambda y: (y, y)).eval()
    with pytest.raises(SnowsError, match=r"^a method that looks at the whole network: got an output"):
        drawn_labels(Network(odd, example=images[:2]), images, torch.Generator())
