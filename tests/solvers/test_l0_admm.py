"""ADMM under a pattern: against the published steps by plain solves, closed forms, and masks of magnitude."""

import pytest
import torch

from snows_core.solvers.l0_admm import pattern_admm
from snows_core.solvers.least_squares import Diagonal, RowFactors, masked_least_squares


def rows_problem(rows=1, inputs=9, groups=1, seed=0, correlation=0.8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 30, inputs, generator=generator, dtype=torch.float64)
    x = (x + correlation * x[:, :, :1]) * (0.3 + torch.rand(inputs, generator=generator, dtype=torch.float64))
    h = x.mT @ x + 0.05 * torch.eye(inputs, dtype=torch.float64)
    best = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    return h, best, (best.view(groups, -1, inputs) @ h).view_as(best)


def of_layer(keep):
    """What keeps the largest of all rows together."""

    def highest(sizes):
        kept = torch.zeros(sizes.numel(), dtype=torch.bool)
        kept[sizes.flatten().topk(keep).indices] = True
        return kept.view_as(sizes)

    return highest


def fitted(h, right, mask):
    """The minimum on a mask, and w H w / 2 - b w there, row by row."""
    weight, loss = torch.zeros_like(right), 0.0
    for i, kept in enumerate(mask):
        own = h[i * len(h) // len(mask)]
        weight[i, kept] = torch.linalg.solve(own[kept][:, kept], right[i, kept])
        loss += float(weight[i] @ own @ weight[i]) / 2 - float(right[i] @ weight[i])
    return weight, loss


def published(h, best, keep):
    """The steps of Algorithm 1, with the inputs scaled, by solves and loops."""
    own = [h[i * len(h) // len(best)] for i in range(len(best))]
    size = torch.stack([matrix.diagonal().sqrt() for matrix in own])
    scaled = [matrix / sizes[:, None] / sizes for matrix, sizes in zip(own, size, strict=True)]
    d, v, rho = best * size, torch.zeros_like(best), 0.1
    right = torch.stack([matrix @ row for matrix, row in zip(scaled, d, strict=True)])
    last, eye = of_layer(keep)(d.abs()), torch.eye(h.shape[1], dtype=h.dtype)
    for step in range(1, 10_000):
        pull = right - v + rho * d
        w = torch.stack([torch.linalg.solve(m + rho * eye, row) for m, row in zip(scaled, pull, strict=True)])
        support = of_layer(keep)((w + v / rho).abs())
        d = (w + v / rho) * support
        v = v + rho * (w - d)
        if step % 3 == 0:
            changed, last = int((support != last).sum()), support
            if changed == 0:
                return d / size, support, step
            rho *= 1.3 if changed >= 0.1 * keep else 1.2 if changed >= 0.005 * keep else 1.1
    raise AssertionError("the support moves for ever")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_steps_and_penalties_are_the_published_ones(seed, groups):
    h, best, right = rows_problem(30, 20, groups, seed)
    weight, mask, steps = pattern_admm(h, right, best, of_layer(180))
    expected, support, taken = published(h, best, 180)
    assert torch.equal(mask, support) and steps == taken > 3 and torch.allclose(weight, expected, rtol=1e-8, atol=1e-10)
    assert int(mask.sum()) == 180 and not weight[~mask].any()


def test_of_inputs_without_correlation_the_largest_contributions_stay():
    sizes = torch.tensor([1.0, 20.0, 0.5, 30.0, 0.1, 15.0], dtype=torch.float64)
    best = torch.tensor([[1.0, -1.0, 3.0, 1.2, 9.0, 1.1]], dtype=torch.float64)
    weight, mask, _ = pattern_admm(torch.diag(sizes**2)[None], best * sizes**2, best, of_layer(3))
    assert mask[0].nonzero().flatten().tolist() == [1, 3, 5]  # |w| times size, ten times that of the others
    assert torch.allclose(weight, best * mask, rtol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_supports_are_better_than_those_of_magnitude_and_of_magnitude_times_input_size(seed, share):
    h, best, right = rows_problem(12, 30, seed=seed)
    keep = of_layer(round(share * best.numel()))
    loss = fitted(h, right, pattern_admm(h, right, best, keep)[1])[1]
    for sizes in (best.abs(), best.abs() * h[0].diagonal().sqrt()):
        assert loss < fitted(h, right, keep(sizes))[1]


def test_conjugate_gradients_with_the_diagonal_end_where_factors_do():
    h, best, right = rows_problem(6, groups=2, seed=3)
    mask = torch.rand(best.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    expected = fitted(h, right, mask)[0]
    wrong = torch.where(mask, torch.ones_like(best), 0.0)
    for start in (None, wrong, expected):
        got = masked_least_squares(Diagonal(h, mask, 0.0), best, response=right, start=start, tolerance=1e-12)
        assert torch.allclose(got, expected, rtol=1e-8, atol=1e-9) and not got[~mask].any()
    halved = Diagonal(torch.eye(9, dtype=torch.float64).expand(2, 9, 9), mask, 1.0).solve(best)
    assert torch.equal(halved, torch.where(mask, best / 2, 0.0))
    damped = masked_least_squares(Diagonal(h, mask, 0.7), best, tolerance=1e-12)
    factors = RowFactors(h, mask, 0.7 / float(h.diagonal(dim1=1, dim2=2).mean()))
    assert torch.allclose(damped, masked_least_squares(factors, best), rtol=1e-7, atol=1e-9)
    # Nothing is left to do at the solution, and a first step from elsewhere is not enough.
    stayed = masked_least_squares(Diagonal(h, mask, 0.0), best, response=right, start=expected, iterations=0)
    assert torch.equal(stayed, expected)
