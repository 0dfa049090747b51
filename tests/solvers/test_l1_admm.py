"""The l1 problem against the conditions of its minimum, closed forms, and counts on both sides of a multiplier."""

import pytest
import torch

from snows_core.solvers.l1_admm import L1LeastSquares, sparsest


def rows_problem(rows=6, inputs=10, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 40, inputs, generator=generator, dtype=torch.float64)
    x = (x + 0.7 * x[:, :, :1]) * (0.2 + 3 * torch.rand(inputs, generator=generator, dtype=torch.float64))
    h = x.mT @ x + 0.05 * torch.eye(inputs, dtype=torch.float64)
    best = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    allowed = torch.rand(rows, inputs, generator=generator) < 0.9
    return h, (best.view(groups, -1, inputs) @ h).view_as(best), allowed


def hold(h, right, allowed, weight, mu, rel):
    """Tell whether every row meets the conditions of the minimum."""
    for i, w in enumerate(weight):
        slope = h[i * len(h) // len(weight)] @ w - right[i]
        away = w != 0
        assert not w[~allowed[i]].any()
        assert torch.allclose(slope[away], -mu * w[away].sign(), rtol=rel, atol=rel * mu)
        assert bool((slope[~away & allowed[i]].abs() <= mu * (1 + rel)).all())


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_conditions_of_the_minimum_hold(groups, share):
    h, right, allowed = rows_problem(groups=groups)
    problem = L1LeastSquares(h, right, allowed, tolerance=1e-7)
    mu = share * problem.largest
    weight = problem.solve(mu)
    hold(h, right, allowed, weight, mu, 1e-6)
    assert 0 < int((weight != 0).sum()) < int(allowed.sum()) + (share < 0.1)
    assert problem.missed(mu) <= 1e-7 < problem.missed(1.1 * mu)
    assert torch.equal(problem.weight, weight)
    again = L1LeastSquares(h, right, allowed, tolerance=1e-7)
    again.solve(0.3 * mu)  # from another start
    assert torch.allclose(again.solve(mu), weight, atol=1e-6 * float(weight.abs().max()))


def test_without_correlation_it_is_a_soft_threshold():
    sizes = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
    right = torch.tensor([[2.0, -6.0, 0.5], [0.9, 1.5, -3.0]], dtype=torch.float64)
    problem = L1LeastSquares(torch.diag(sizes)[None], right, torch.ones_like(right, dtype=torch.bool), tolerance=1e-10)
    expected = torch.tensor([[1.0, -1.25, 0.0], [0.0, 0.125, -8.0]], dtype=torch.float64)
    assert torch.allclose(problem.solve(1.0), expected, atol=1e-9) and problem.largest == 6.0


@pytest.mark.parametrize("keep", [1, 13, 30, 50])
def test_as_many_weights_are_left_as_asked_for(keep):
    h, right, allowed = rows_problem(seed=1)
    problem = L1LeastSquares(h, right, allowed)
    mu = sparsest(problem, keep)
    assert int((problem.weight != 0).sum()) == keep
    hold(h, right, allowed, problem.weight, mu, 1e-3)
    fresh = L1LeastSquares(h, right, allowed)
    counts = [int((fresh.solve(factor * mu) != 0).sum()) for factor in (1.5, 1.0, 0.6)]
    assert counts[0] <= keep == counts[1] <= counts[2] and counts[0] < counts[2]


def test_two_weights_that_come_in_together_are_both_there():
    right = torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.float64)
    problem = L1LeastSquares(torch.eye(3, dtype=torch.float64)[None], right, torch.ones_like(right, dtype=torch.bool))
    assert sparsest(problem, 2) == pytest.approx(1.0, rel=1e-3)
    assert problem.weight[0, 2] == pytest.approx(2.0, rel=1e-3) and bool((problem.weight > 0).all())


def test_weights_that_are_not_there_end_the_search():
    right = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    problem = L1LeastSquares(torch.eye(2, dtype=torch.float64)[None], right, torch.ones_like(right, dtype=torch.bool))
    assert sparsest(problem, 2) <= 1e-9
    assert problem.weight[0, 0] == pytest.approx(1.0) and int((problem.weight != 0).sum()) == 1
    nothing = L1LeastSquares(problem.matrix, 0 * right, problem.allowed)
    assert sparsest(nothing, 2) < 1e-300 and not nothing.weight.any()
