"""curvature.py, weight_squares: in the mean over random signs, the diagonal of the Gauss-Newton matrix itself."""

import pytest
import torch
from cases import CASES
from oracles import Case
from torch import nn
from toys import awake, random_images

PROBES = 250
NAMES = ("resnet", "vectors", "tokens", "strided", "grouped", "depthwise", "reflected", "batch norm", "ragged")


def exact(case):
    """The squared columns of the Jacobian of the scaled errors: diag(J' C J) = 2 diag(J_r' J_r)."""
    return 2 * torch.func.jacrev(case.residuals)(case.weight).square().sum(0).detach()


def estimate(case, probes=PROBES, seed=0):
    return case.objective.diagonal(case.weight, torch.Generator().manual_seed(seed), probes)


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_the_exact_diagonal(name):
    case = CASES[name](2, curvature="gauss-newton")
    assert distance(estimate(case), exact(case)) < 0.12


class TokensFirst(nn.Module):
    """A linear layer on values (tokens, N, channels), and one behind it that mixes tokens."""

    def __init__(self):
        super().__init__()
        self.one, self.mix, self.act = nn.Linear(3, 4), nn.Linear(9, 6), nn.ReLU()

    def forward(self, x):
        return self.mix(self.act(self.one(x.flatten(2).permute(2, 0, 1))).permute(1, 2, 0))


@pytest.mark.parametrize("count", [5, 9])
def test_tokens_first_are_not_taken_for_images(count):
    """Nine tokens of an image are correlated; so are they where there are nine images, too."""
    model = awake(TokensFirst())
    with torch.no_grad():
        model.mix.weight.abs_().mul_(3.0)
    case = Case(model, "one", None, random_images(count, 3) + 2, 2, curvature="gauss-newton")
    assert distance(estimate(case, 1000), exact(case)) < 0.12


def test_image_by_image_is_less_noisy_than_the_batch_as_a_whole(monkeypatch):
    case = CASES["convolution"](2, curvature="gauss-newton")
    wanted = exact(case)
    by_image = [distance(estimate(case, 1, seed), wanted) for seed in range(30)]
    case.objective.share.own = [99]  # no axis of the input is as long
    whole = [distance(estimate(case, 1, seed), wanted) for seed in range(30)]
    assert sum(by_image) < 0.8 * sum(whole)
    assert distance(estimate(case), wanted) < 0.1


def test_few_images_at_once_change_nothing(monkeypatch):
    case = CASES["grouped"](2, curvature="gauss-newton")
    whole = estimate(case, 2)
    monkeypatch.setattr("snows_core.loss.curvature.PIECE", 1.0)
    torch.testing.assert_close(estimate(case, 2), whole, rtol=1e-12, atol=1e-15)
