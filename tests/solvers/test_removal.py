"""removal.py: what a weight is worth to layer-wise least squares, against taking it away and giving it back."""

import pytest
import torch

from snows_core.solvers.least_squares import grouped_product, masked_least_squares, residual
from snows_core.solvers.removal import least_squares_values
from snows_core.solvers.row_factors import RowFactors

GROUPS, OUT, D = 2, 6, 8


def problem(full=False, **options):
    """Gram matrices of two groups, a mask with an empty row and unequal rows, dense rows and what they answer."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = draw(GROUPS, D, 12)
    mask = torch.ones(OUT, D, dtype=torch.bool) if full else torch.rand(OUT, D, generator=generator) < 0.6
    if not full:
        mask[1] = False
    factors = RowFactors(x @ x.mT, mask, 1e-2, **options)
    dense = draw(OUT, D)
    return factors, dense, grouped_product(factors.gram, dense) + draw(OUT, D)


def best(matrix, rhs, kept):
    """The minimum of ``w M w' - 2 rhs w`` over the kept entries."""
    part = rhs[kept]
    return -float(part @ torch.linalg.solve(matrix[kept][:, kept], part)) if kept.any() else 0.0


def by_hand(factors, dense, response, weight, block=D):
    """Solve each row anew without the weight, or with it; weights of other blocks of inputs stay as they are."""
    expected = torch.zeros(OUT, D, dtype=torch.float64)
    for i in range(OUT):
        whole = factors.gram[i // (OUT // GROUPS)] + factors.damping * torch.eye(D, dtype=torch.float64)
        for start in range(0, D, block):
            inside, others = slice(start, start + block), weight[i].clone()
            others[inside] = 0.0
            rhs = (response[i] + factors.damping * dense[i] - whole @ others)[inside]
            for j in range(block):
                without, with_it = factors.mask[i, inside].clone(), factors.mask[i, inside].clone()
                without[j], with_it[j] = False, True
                matrix = whole[inside, inside]
                expected[i, start + j] = best(matrix, rhs, without) - best(matrix, rhs, with_it)
    return expected


@pytest.mark.parametrize("answered", [False, True])
def test_the_residual_is_half_the_slope_of_the_problem(answered):
    factors, dense, response = problem()
    weight = torch.randn(OUT, D, dtype=torch.float64, requires_grad=True)
    aim = response if answered else grouped_product(factors.gram, dense)
    quadratic = (weight * grouped_product(factors.gram, weight)).sum() - 2 * (aim * weight).sum()
    (slope,) = torch.autograd.grad(quadratic + factors.damping * (weight - dense).square().sum(), weight)
    found = residual(factors, weight.detach(), dense, response if answered else None)
    torch.testing.assert_close(found, -slope / 2, rtol=1e-10, atol=1e-12)


def test_removal_costs_and_a_return_gains_what_a_new_solution_says():
    factors, dense, response = problem()
    weight = masked_least_squares(factors, dense, response=response)
    values = least_squares_values(factors, weight, residual(factors, weight, dense, response))
    torch.testing.assert_close(values, by_hand(factors, dense, response, weight), rtol=1e-6, atol=1e-9)


def test_a_weight_that_is_not_the_least_squares_one_gains_the_same_by_a_return():
    factors, dense, response = problem()
    weight = masked_least_squares(factors, dense, response=response)
    other = weight + 0.3 * factors.mask
    values, moved = (least_squares_values(factors, w, residual(factors, w, dense, response)) for w in (weight, other))
    torch.testing.assert_close(values[~factors.mask], moved[~factors.mask], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(values[factors.mask], moved[factors.mask], rtol=1e-2)


def test_blocks_count_what_their_own_inputs_repair():
    factors, dense, response = problem(max_bytes=1.0)
    assert factors.block == D, "no block is smaller than 16 inputs: cut by hand"
    factors.block, factors.parts = 4, []
    for start in (0, 4):
        factors._factor_block(start, start + 4)
    weight = masked_least_squares(factors, dense, response=response)
    left = residual(factors, weight, dense, response)
    values = least_squares_values(factors, weight, left)
    torch.testing.assert_close(values, by_hand(factors, dense, response, weight, 4), rtol=1e-4, atol=1e-7)
    whole, *_ = problem()
    assert (values >= least_squares_values(whole, weight, left) - 1e-9)[factors.mask].all()


@pytest.mark.parametrize("shared", [False, True])
def test_where_nothing_is_off_the_mask_one_factor_serves_a_group(shared):
    factors, dense, response = problem(full=True)
    weight = masked_least_squares(factors, dense, response=response)
    expected = by_hand(factors, dense, response, weight)
    one = RowFactors(factors.gram, factors.mask[:GROUPS], 1e-2) if shared else factors
    torch.testing.assert_close(least_squares_values(one, weight), expected, rtol=1e-6, atol=1e-9)


def test_the_rows_of_a_batch_may_be_read_in_parts(monkeypatch):
    from snows_core.solvers import removal

    factors, dense, response = problem()
    weight = masked_least_squares(factors, dense, response=response)
    left = residual(factors, weight, dense, response)
    whole = least_squares_values(factors, weight, left)
    monkeypatch.setattr(removal, "ROOM_HOST", 1.0)
    torch.testing.assert_close(least_squares_values(factors, weight, left), whole, rtol=1e-12, atol=0)
