"""The sweep over columns against its definition: behind each column, the best weights with those before it fixed."""

import pytest
import torch

from snows_core.solvers.column_sweep import column_sweep, inverse_factor


def rows_problem(rows=6, inputs=12, groups=2, seed=0):
    """Damped Gram matrices of correlated inputs, and rows that are the minimum."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 40, inputs, generator=generator, dtype=torch.float64)
    x += 0.7 * x[:, :, :1]
    eye = torch.eye(inputs, dtype=torch.float64)
    return x.mT @ x + 0.1 * eye, torch.randn(rows, inputs, generator=generator, dtype=torch.float64)


def cheapest(keep):
    """A chooser that keeps the ``keep`` dearest of the columns it is given, in each row."""

    def choose(columns, costs):
        return torch.zeros_like(costs, dtype=torch.bool).scatter(1, costs.topk(keep, dim=1).indices, True)

    return choose


def swept_from_scratch(h, best, part, choose):
    """One row: remove a weight, then solve for all columns behind it anew."""
    w, mask = best.clone(), torch.ones(len(best), dtype=torch.bool)
    for j in range(len(w)):
        if j % part == 0:
            columns = slice(j, j + part)
            # What removing column c costs once all before it are fixed: over the inverse without them.
            costs = torch.stack([w[c].square() / torch.linalg.inv(h[c:, c:])[0, 0] for c in range(j, j + part)])
            mask[columns] = choose(columns, costs[None])[0]
        if not mask[j]:
            w[j] = 0.0
            behind, fixed = slice(j + 1, None), slice(None, j + 1)
            w[behind] = best[behind] - torch.linalg.solve(h[behind, behind], h[behind, fixed] @ (w - best)[fixed])
    return w, mask


@pytest.mark.parametrize("block", [1, 4, 8, 128])
@pytest.mark.parametrize("part", [1, 4])
def test_every_column_leaves_the_best_weights_behind_it(part, block):
    matrix, best = rows_problem()
    lots = torch.rand(best.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    row = 0

    def choose(columns, costs):  # without a part: any mask
        if part > 1:
            return cheapest(2)(columns, costs)
        return lots[:, columns] if len(costs) > 1 else lots[row : row + 1, columns]

    weight, mask = column_sweep(matrix, best, choose, part, block)
    for row in range(6):
        expected, kept = swept_from_scratch(matrix[row // 3], best[row], part, choose)
        assert torch.equal(mask[row], kept) and torch.allclose(weight[row], expected, rtol=1e-8, atol=1e-10)
    assert not weight[~mask].any() and (part == 1 or bool((mask.view(6, 3, 4).sum(2) == 2).all()))


def test_costs_are_asked_for_once_a_part_with_the_weights_as_they_are_then():
    matrix, best = rows_problem(groups=1)
    asked = []

    def none(columns, costs):
        asked.append((columns, costs))
        return torch.zeros_like(costs, dtype=torch.bool)

    column_sweep(matrix, best, none, 5, 3)  # blocks of 3 are no multiple of 5
    assert [columns for columns, _ in asked] == [slice(0, 5), slice(5, 10), slice(10, 12)]
    h = matrix[0]
    left = best[:, 5:] + torch.linalg.solve(h[5:, 5:], h[5:, :5] @ best[:, :5].T).T  # all five before are gone
    expected = [left[:, c] ** 2 / torch.linalg.inv(h[5 + c :, 5 + c :])[0, 0] for c in range(5)]
    assert torch.allclose(asked[1][1], torch.stack(expected, 1), rtol=1e-8)


def test_the_factor_is_one_of_the_inverse():
    matrix, _ = rows_problem()
    factor = inverse_factor(matrix)
    assert torch.equal(factor, factor.triu()) and bool((factor.diagonal(dim1=1, dim2=2) > 0).all())
    assert torch.allclose(factor.mT @ factor, torch.linalg.inv(matrix), rtol=1e-8, atol=1e-12)
