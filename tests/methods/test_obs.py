"""L-OBS against its definition: sensitivities from the inverse Hessian, and the correction of one weight."""

import pytest
import torch
from problems import PROBLEMS, problem_of

from snows_core.masks import NM, Unstructured
from snows_core.methods import METHODS
from snows_core.settings import RECIPES

RIDGE = 1e-3


def sensitivities(problem):
    """Per row: the minimum w* on all inputs, the inverse Hessian, and w_j^2 / (2 [H^-1]_jj)."""
    gram, response = problem.normal_equations()
    rows, share = problem.weight.flatten(1), len(problem.weight) // len(gram)
    damping = RIDGE * float(gram.diagonal(dim1=1, dim2=2).mean())
    found = []
    for i, dense in enumerate(rows):
        inverse = torch.linalg.inv(gram[i // share] + damping * torch.eye(gram.shape[1], dtype=gram.dtype))
        best = inverse @ (response[i] + damping * dense)
        found.append((best, inverse, best.square() / (2 * inverse.diagonal())))
    return found


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.6)], ids=str)
@pytest.mark.parametrize("case", PROBLEMS)
def test_the_lowest_sensitivities_of_the_dense_layer_go(case, pattern):
    problem = problem_of(case)
    if isinstance(pattern, NM) and pattern.misfit(problem.weight, problem.geometry.groups):
        pytest.skip("its inputs do not divide into groups")
    scores = torch.stack([score for *_, score in sensitivities(problem)])
    barred = problem.mask.clone()
    barred.view(-1)[10:] = True  # few are zero already
    problem.mask, problem.pattern = barred, pattern
    ranked = torch.where(barred.flatten(1), scores, -1.0).view_as(barred)
    expected = pattern.mask(ranked) & barred
    assert torch.equal(METHODS["obs"](RECIPES["fast"], 0).solve(problem).mask, expected)


@pytest.mark.parametrize("case", PROBLEMS)
def test_one_removed_weight_of_a_row_is_made_good_by_the_papers_correction(case):
    problem = problem_of(case)
    found = sensitivities(problem)
    problem.mask = torch.ones_like(problem.mask)
    flat, expected = problem.mask.flatten(1), []
    for i, (best, inverse, score) in enumerate(found):
        j = int(score.argmin())
        flat[i, j] = False
        expected.append(best - best[j] / inverse[j, j] * inverse[:, j])
    problem.mask = flat.view_as(problem.mask)
    weight = METHODS["obs"](RECIPES["fast"], 0).solve(problem).weight.flatten(1)
    assert torch.allclose(weight, torch.stack(expected), rtol=1e-6, atol=1e-9)


def test_many_removed_weights_are_made_good_together():
    problem = problem_of("transformer")
    problem.mask, problem.pattern = torch.ones_like(problem.mask), Unstructured(0.5)
    solution = METHODS["obs"](RECIPES["fast"], 0).solve(problem)
    for (best, inverse, _), kept, row in zip(
        sensitivities(problem), solution.mask.flatten(1), solution.weight.flatten(1), strict=True
    ):
        gone = ~kept
        corrected = best - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], best[gone])
        assert torch.allclose(row, corrected, rtol=1e-6, atol=1e-9)
