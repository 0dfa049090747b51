"""Net-Trim on layers: the conditions of its convex problem, read off the weights that it returns."""

import pytest
import torch
from problems import PROBLEMS, problem_of

from snows_core.masks import Unstructured
from snows_core.methods import METHODS, nettrim
from snows_core.settings import RECIPES

RIDGE = 1e-3


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
@pytest.mark.parametrize("case", PROBLEMS)
def test_weights_are_the_least_norm_within_their_error(case, sparsity):
    problem = problem_of(case)
    problem.mask, problem.pattern = torch.ones_like(problem.mask), Unstructured(sparsity)
    problem.mask.view(-1)[:3] = False
    solution = METHODS["nettrim"](RECIPES["fast"], 0).solve(problem)
    gram, response = problem.normal_equations()
    damping = RIDGE * float(gram.diagonal(dim1=1, dim2=2).mean())
    h = gram + damping * torch.eye(gram.shape[1], dtype=gram.dtype)
    right = response + damping * problem.weight.flatten(1)
    weight, mask = solution.weight.flatten(1), solution.mask.flatten(1)
    grouped = weight.view(len(h), -1, weight.shape[1])
    slope = (grouped @ h).view_as(weight) - right
    mu = slope[mask].abs()
    assert bool((weight[mask] != 0).all()) and torch.allclose(mu, mu.mean(), rtol=1e-3)  # one multiplier for the layer
    assert torch.equal(slope[mask].sign(), -weight[mask].sign())
    others = ~mask & problem.mask.flatten(1)
    assert bool((slope[others].abs() <= float(mu.mean()) * (1 + 1e-3)).all())
    best = torch.linalg.solve(h, right.view(len(h), -1, weight.shape[1]).mT).mT
    norms = [float((w @ h * w).sum()) for w in (grouped - best, best)]
    told = f"the l1 problem was solved at a tolerance of {100 * (norms[0] / norms[1]) ** 0.5:.3g} % of the output"
    assert solution.statistics.stop == told


def test_more_zeros_than_asked_for_stay_as_they_are():
    problem = problem_of("residual unit")
    problem.pattern = Unstructured(0.1)
    problem.mask = torch.zeros_like(problem.mask)
    problem.mask[:, :2] = True
    assert torch.equal(METHODS["nettrim"](RECIPES["fast"], 0).choose(problem), problem.mask)


def test_of_more_weights_than_asked_for_the_largest_stay(monkeypatch):
    problem, left = problem_of("residual unit"), []
    problem.pattern, problem.mask = Unstructured(0.8), torch.ones_like(problem.mask)
    monkeypatch.setattr(nettrim, "sparsest", lambda l1, keep: left.append(l1.solve(0.1 * l1.largest)))
    solution = METHODS["nettrim"](RECIPES["fast"], 0).solve(problem)
    assert int((left[0] != 0).sum()) > int(solution.mask.sum()) == 29
    largest = left[0].abs() >= left[0].abs().flatten().topk(29).values[-1]
    assert torch.equal(solution.weight.flatten(1), torch.where(largest, left[0], 0.0))
