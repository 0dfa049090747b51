"""The loss of one layer as the notebooks on Newton's method see it, against autograd and dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snows_core import SnowsError
from snows_core.book import LayerLoss, layer_loss


@pytest.fixture(scope="module")
def layer() -> LayerLoss:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Conv2d(3, 4, 3, bias=False), nn.GELU()).double().eval()
    return layer_loss(model, "2", "1:3", 1, torch.randn(6, 1, 8, 8, dtype=torch.float64), batch=4)


def plain(layer: LayerLoss, v: torch.Tensor) -> torch.Tensor:
    return sum((value - target).square().mean() * count / layer.images for value, target, count in layer.compared(v))


def dense_product(layer: LayerLoss, function, u: torch.Tensor) -> torch.Tensor:
    return torch.func.jvp(torch.func.grad(function), (layer.start,), (u,))[1]


def test_a_vector_fills_the_kept_places_and_no_others(layer):
    v = torch.arange(1.0, layer.n + 1).double()
    weight = layer.weight(v)
    assert torch.equal(layer.vector(weight), v) and torch.equal(weight != 0, layer.loss.mask)
    assert torch.equal(layer.start, layer.dense[layer.loss.mask]) and layer.n == layer.dense.numel() // 3


def test_loss_gradient_and_product_are_those_of_the_definition(layer):
    at, u = layer.linearise(layer.start), torch.randn(layer.n).double()
    assert len(layer.operations) == 2 and layer.images == 6
    assert layer.value(layer.start) == pytest.approx(plain(layer, layer.start).item(), rel=1e-12)
    assert at.loss == pytest.approx(layer.value(layer.start), rel=1e-12)
    torch.testing.assert_close(at.gradient, torch.func.grad(lambda v: plain(layer, v))(layer.start))
    torch.testing.assert_close(at.product(u), dense_product(layer, lambda v: plain(layer, v), u))


def test_gauss_newton_leaves_out_the_second_derivatives_of_the_activations(layer):
    def scaled(v):
        return torch.cat([(n / 6 / x.numel()) ** 0.5 * x.flatten() for x, _, n in layer.compared(v)])

    u = torch.randn(layer.n).double()
    jacobian = torch.func.jacrev(scaled)(layer.start)
    found = layer.gauss_newton().linearise(layer.start).product(u)
    torch.testing.assert_close(found, 2 * jacobian.T @ (jacobian @ u))
    assert (found - layer.linearise(layer.start).product(u)).norm() > 1e-3 * found.norm()


def test_batches_are_means_of_their_own_images(layer):
    first, second = layer.on([0]), layer.on([1])
    assert (first.images, second.images) == (4, 2)
    mean = (4 * first.value(layer.start) + 2 * second.value(layer.start)) / 6
    assert layer.value(layer.start) == pytest.approx(mean, rel=1e-12)


def test_the_preconditioner_inverts_what_each_row_keeps(layer):
    strengths, ridge = layer.strengths(layer.start, seed=0), 0.1
    gram, mask = layer.gram()[0], layer.loss.mask.flatten(1)
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))
    residual = torch.randn(layer.n).double()
    rows = layer.weight(residual).flatten(1)
    expected = torch.cat(
        [
            torch.linalg.solve(s * damped[keep][:, keep], r[keep])
            for s, keep, r in zip(strengths, mask, rows, strict=True)
        ]
    )
    torch.testing.assert_close(layer.preconditioner(ridge, strengths)(residual), expected)


def test_least_squares_has_no_slope_left_in_the_layers_own_error(layer):
    gram, ridge = layer.gram()[0], 1e-12
    change = (layer.weight(layer.least_squares(ridge)) - layer.dense).flatten(1)
    slope = (change @ gram)[layer.loss.mask.flatten(1)]
    assert slope.abs().max() < 1e-8 * gram.abs().max()


def test_a_layer_that_is_not_there_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(SnowsError, match=r"layer: got 'third'; expected one of"):
        layer_loss(model, "third", "1:3", 1, torch.randn(2, 1, 8, 8), batch=2)
