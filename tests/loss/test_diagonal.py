"""curvature.py, weight_squares: in the mean over random signs, the diagonal of the Gauss-Newton matrix itself."""

from dataclasses import replace

import pytest
import torch
from cases import CASES
from toys import torch_attention

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


def test_tokens_first_are_not_taken_for_images():
    """``batch_first=False``: axis 0 is of tokens, which are correlated; five images keep it apart from nine tokens."""
    first = replace(CASES["torch attention"], make=lambda seed: torch_attention(seed, batch_first=False))
    for count in (5, 9):
        case = replace(first, count=count)(3, curvature="gauss-newton")
        assert distance(estimate(case, 120), exact(case)) < 0.25


def test_image_by_image_is_less_noisy_than_the_batch_as_a_whole(monkeypatch):
    case = CASES["convolution"](2, curvature="gauss-newton")
    wanted = exact(case)
    by_image = [distance(estimate(case, 1, seed), wanted) for seed in range(30)]
    case.objective.sizes = [99]  # no axis of the input is as long
    whole = [distance(estimate(case, 1, seed), wanted) for seed in range(30)]
    assert sum(by_image) < 0.8 * sum(whole)
    assert distance(estimate(case), wanted) < 0.1


def test_few_images_at_once_change_nothing(monkeypatch):
    case = CASES["grouped"](2, curvature="gauss-newton")
    whole = estimate(case, 2)
    monkeypatch.setattr("snows_core.loss.curvature.PIECE", 1.0)
    torch.testing.assert_close(estimate(case, 2), whole, rtol=1e-12, atol=1e-15)
