"""l0_regression.py: the objective against dense matrices, its fall, its support, and what the search finds."""

from itertools import pairwise

import pytest
import torch
from fishers import empirical_fisher, gaussian, largest
from toys import relative

from snows_core.solvers import l0_regression
from snows_core.solvers.l0_regression import Regression


def pieces(gradients, sizes):
    return list(gradients.split(sizes, 1))


@pytest.mark.parametrize("sizes", [[24], [10, 14]])
def test_the_regression_is_the_quadratic_of_the_fisher(sizes):
    gradients, weight, at = gaussian(9, 24), gaussian(24, seed=1), gaussian(24, seed=2)
    regression = Regression.of(pieces(gradients, sizes), weight, 0.1)
    matrix = torch.block_diag(*(empirical_fisher(part, 0.1) for part in pieces(gradients, sizes)))
    away = at - weight
    assert regression.value(at) == pytest.approx(float(away @ matrix @ away) / 2, rel=1e-10)
    assert relative(regression.gradient(at), matrix @ away) < 1e-10
    assert regression.safe_step() == pytest.approx(1 / float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-9)
    active = gaussian(24, seed=3) > 0
    inside = torch.where(active, at, 0.0)
    part = regression.among(active)
    assert part.value(at[active]) == pytest.approx(regression.value(inside), rel=1e-10)
    assert relative(part.gradient(at[active]), regression.gradient(inside)[active]) < 1e-10
    solved = regression.back_solve(active)
    wanted = weight[active] + torch.linalg.solve(
        matrix[active][:, active], matrix[active][:, ~active] @ weight[~active]
    )
    assert not solved[~active].any() and relative(solved[active], wanted) < 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_the_objective_never_rises_and_the_support_is_exact(seed):
    gradients, weight, count = gaussian(12, 40, seed=seed), gaussian(40, seed=seed + 20), 12
    gradients = gradients * torch.logspace(-1, 1, 40, dtype=torch.float64)
    regression = Regression.of([gradients], weight, 0.05)
    found = l0_regression.l0_regression(regression, largest(count))
    steps = torch.tensor(found.objective)
    assert (steps.diff() <= 0).all() and len(steps) > 3
    assert int(found.support.sum()) == count and not found.weight[~found.support].any()
    assert found.objective[-1] == pytest.approx(regression.value(found.weight), rel=1e-9)
    magnitude = regression.back_solve(largest(count)(weight.abs()))
    assert found.objective[-1] <= regression.value(magnitude) * (1 + 1e-9)
    slope = regression.gradient(found.weight)
    assert slope[found.support].abs().max() < 1e-6 * slope.abs().max()  # back-solved


def test_the_search_goes_beyond_the_back_solve_of_the_largest_weights():
    better = 0
    for seed in range(20):
        gradients = gaussian(12, 40, seed=seed) * torch.logspace(-1, 1, 40, dtype=torch.float64)
        regression = Regression.of([gradients], gaussian(40, seed=seed + 20), 0.05)
        found = l0_regression.l0_regression(regression, largest(12))
        magnitude = regression.back_solve(largest(12)(regression.anchor.abs()))
        better += found.objective[-1] < 0.8 * regression.value(magnitude)
    assert better >= 10


def test_the_active_set_only_grows(monkeypatch):
    seen, among = [], Regression.among
    monkeypatch.setattr(Regression, "among", lambda own, places: seen.append(places) or among(own, places))
    gradients = gaussian(12, 40, seed=1) * torch.logspace(-1, 1, 40, dtype=torch.float64)
    found = l0_regression.l0_regression(Regression.of([gradients], gaussian(40, seed=21), 0.05), largest(12))
    assert len(seen) > 1 and all(bool((late | ~early).all()) for early, late in pairwise(seen))
    assert bool(seen[-1][found.support].all()) and 12 < int(seen[-1].sum()) < 40


def test_a_regression_that_a_few_weights_repeat_exactly_is_solved():
    """Columns that are copies of one another: the weight of all moves to those that stay."""
    base, weight = gaussian(6, 3), torch.tensor([1.0, 0.9, 0.8, 0.1, 0.2, 0.15], dtype=torch.float64)
    regression = Regression.of([torch.cat([base, base], 1)], weight, 1e-6)
    found = l0_regression.l0_regression(regression, largest(3))
    assert found.support.tolist() == [True] * 3 + [False] * 3
    torch.testing.assert_close(found.weight[:3], weight[:3] + weight[3:], rtol=1e-3, atol=0)
