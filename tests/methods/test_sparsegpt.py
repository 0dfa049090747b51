"""SparseGPT on layers: the order of columns, the share of each part, and the published sweep from its definition."""

from itertools import pairwise

import pytest
import torch
from problems import problem_of

from snows_core.masks import NM, Unstructured
from snows_core.methods import METHODS, sparsegpt
from snows_core.settings import RECIPES
from snows_core.solvers.column_sweep import column_sweep
from snows_core.solvers.damped_gram import damped_gram


def solved(problem):
    return METHODS["sparsegpt"](RECIPES["fast"], 0).solve(problem)


def chosen_anew(case, pattern):
    problem = problem_of(case)
    problem.pattern, problem.mask = pattern, torch.ones_like(problem.mask)
    return problem


def quadratic(problem):
    gram, response = problem.normal_equations()
    damped = damped_gram(gram, RECIPES["fast"].ridge)
    return damped, damped.minimiser(problem.weight.flatten(1), response)


def test_groups_of_n_m_are_swept_by_channels_one_kernel_position_after_the_other():
    problem = chosen_anew("residual unit", NM(2, 4))
    damped, best = quadratic(problem)
    order = torch.arange(36).view(4, 9).T.flatten()  # of (4 channels, 9 positions), position by position

    def two(columns, costs):
        return torch.zeros_like(costs, dtype=torch.bool).scatter(1, costs.topk(2, dim=1).indices, True)

    weight, mask = column_sweep(damped.matrix[:, order][:, :, order], best[:, order], two, 4)
    solution, back = solved(problem), order.argsort()
    assert torch.equal(solution.mask.flatten(1), mask[:, back])
    assert torch.allclose(solution.weight.flatten(1), weight[:, back])


@pytest.mark.parametrize("case", ["residual unit", "groups and stride"])
def test_a_given_mask_is_swept_in_the_weights_own_order(case):
    problem = problem_of(case)
    damped, best = quadratic(problem)
    kept = problem.mask.flatten(1)
    weight, _ = column_sweep(damped.matrix, best, lambda columns, _: kept[:, columns], 1)
    assert torch.allclose(solved(problem).weight.flatten(1), weight)
    assert solved(problem).statistics.stop == "all columns were swept once"


@pytest.mark.parametrize("barred", [0, 60])
def test_each_part_of_the_columns_takes_its_share(monkeypatch, barred):
    monkeypatch.setattr(sparsegpt, "COLUMNS", 10)
    problem = chosen_anew("residual unit", Unstructured(0.6))
    problem.mask.view(4, 36)[:, : barred // 4] = False  # more than the first part's share
    mask = solved(problem).mask.view(4, 36)
    removed = [int((~mask[:, start : start + 10]).sum()) for start in range(0, 36, 10)]
    total = 4 * 36 - int(Unstructured(0.6).mask(problem.weight).sum())
    if not barred:
        due = [0, *(total * columns // 36 for columns in (10, 20, 30, 36))]
        assert removed == [after - before for before, after in pairwise(due)]
    else:
        assert removed[0] == 40 and sum(removed) == total and not mask[:, :15].any()
    assert len({int(count) for count in mask.sum(1)}) > 1  # rows keep unlike numbers
