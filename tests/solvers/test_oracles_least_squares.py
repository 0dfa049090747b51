"""Least squares on a mask, its Gram matrices and its factors, against NumPy row by row."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy_layers import lstsq_row_by_row, outputs_of, patch_rows, rows_problem, solved_row_by_row
from torch import nn
from toys import random_images, random_mask, relative

from snows_core.activations import gram_matrices as gram_module
from snows_core.activations.gram_matrices import gram, normal_equations
from snows_core.activations.offload import DiskTensor
from snows_core.network.geometry import Geometry
from snows_core.solvers import row_factors
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors, full_factor_bytes


@pytest.mark.parametrize("piece", [1.0, 3e4, 1e9])
@pytest.mark.parametrize("long", [1, 10**9])
@pytest.mark.parametrize("groups", [1, 2])
def test_gram_and_response_are_sums_over_images_and_positions_however_they_are_cut(monkeypatch, piece, long, groups):
    monkeypatch.setattr(gram_module, "PIECE", piece)
    monkeypatch.setattr(gram_module, "LONG", long)
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=groups).double()
    x, x0 = random_images(7, 8, channels=4), random_images(7, 8, seed=5, channels=4)
    weight = layer.weight.detach().flatten(1).numpy()
    rows, rows0 = patch_rows(x.numpy(), layer)[0], patch_rows(x0.numpy(), layer)[0]
    y0 = layer(x0).detach() - layer.bias.detach().view(1, -1, 1, 1)
    geometry = Geometry((3, 2), (2, 1), (1, 0), (1, 1), groups)
    own, response = normal_equations([(x[:3], y0[:3]), (x[3:], y0[3:])], geometry, 6)
    assert relative(own, torch.from_numpy(np.array([patches.T @ patches for patches in rows]))) < 1e-12
    dense = outputs_of(rows0, weight)
    share = 6 // groups
    expected = np.stack([dense[:, i] @ rows[i // share] for i in range(6)])
    assert relative(response, torch.from_numpy(expected)) < 1e-12
    alone, nothing = normal_equations([(x[:3], None), (x[3:], None)], geometry, 6)
    assert relative(alone, own) < 1e-12 and nothing is None


def test_gram_and_response_of_tokens():
    x, y0 = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    own, response = normal_equations([(x[:1], y0[:1]), (x[1:], y0[1:])], Geometry(None), 4)
    assert relative(own[0], torch.einsum("nti,ntj->ij", x, x)) < 1e-12
    assert relative(response, torch.einsum("nto,nti->oi", y0, x)) < 1e-12


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_factors_solve_each_row_on_what_it_keeps(groups, scaled, on_disk):
    x, _, rhs, mask = rows_problem(rows=8, groups=groups)
    lengths = torch.tensor([12, 12, 1, 3, 12, 7, 0, 2])  # one row keeps nothing
    mask = mask & (torch.arange(12) < lengths[:, None])
    scale = torch.logspace(-2, 3, 8, dtype=torch.float64) if scaled else None
    factors = RowFactors(gram(x), mask, 1e-2, scale, rest=DiskTensor if on_disk else None)
    damping = 1e-2 * float(gram(x).diagonal(dim1=1, dim2=2).mean())
    assert relative(factors.solve(rhs), solved_row_by_row(gram(x), damping, mask, rhs, scale)) < 1e-10
    assert (factors.solve(rhs)[~mask] == 0).all()
    assert all(isinstance(kept, DiskTensor) == on_disk for _, _, kept in factors.parts)


def test_rows_that_keep_far_less_than_others_are_factored_apart():
    mask = torch.zeros(10, 40, dtype=torch.bool)
    for i in range(10):
        mask[i, : 40 - 4 * i] = True
    factors = RowFactors(torch.eye(40, dtype=torch.float64)[None], mask)
    counts = mask.sum(1)
    assert sorted(torch.cat([rows for rows, _, _ in factors.parts]).tolist()) == list(range(10))
    for rows, support, factor in factors.parts:
        assert counts[rows].min() > 0.7 * support.shape[1] == 0.7 * counts[rows].max()
        assert factor.shape == (len(rows), support.shape[1], support.shape[1])
    assert 1 < len(factors.parts) < 10


@pytest.mark.parametrize("rows", [6, 40])
def test_as_many_rows_are_factored_together_as_the_room_allows(monkeypatch, rows):
    monkeypatch.setattr(row_factors, "ROOM", {"cpu": 8 * 20 * 20 * 4.0})  # four matrices of twenty
    factors = RowFactors(torch.eye(20, dtype=torch.float64)[None], torch.ones(rows, 20, dtype=torch.bool))
    sizes = [len(part[0]) for part in factors.parts]
    assert sizes == [4] * (rows // 4) + [rows % 4] * (rows % 4 > 0)


def test_bytes_of_full_factors_are_those_of_the_widest_row():
    mask = torch.zeros(5, 9, dtype=torch.bool)
    mask[2, :7] = mask[4, :3] = True
    assert full_factor_bytes(mask, torch.empty(0, dtype=torch.float64)) == 5 * 7 * 7 * 8
    assert full_factor_bytes(mask, torch.empty(0)) == 5 * 7 * 7 * 4


@pytest.mark.parametrize(("share", "block"), [(1.0, 64), (0.99, 32), (0.5, 32), (0.49, 16), (0.01, 16)])
def test_blocks_are_halved_until_the_factors_fit(share, block):
    x, _, rhs, _ = rows_problem(rows=6, inputs=64, samples=200)
    mask = torch.ones(6, 64, dtype=torch.bool)
    factors = RowFactors(gram(x), mask, 1e-3, max_bytes=share * full_factor_bytes(mask, x))
    assert factors.block == block and len(factors.parts) == 64 // block
    blocks = torch.block_diag(*[torch.ones(block, block)] * (64 // block)).double()
    assert relative(factors.solve(rhs), solved_row_by_row(gram(x) * blocks, factors.damping, mask, rhs)) < 1e-10


def test_inputs_that_do_not_divide_into_blocks_are_all_solved():
    x, _, rhs, mask = rows_problem(rows=6, inputs=51, samples=200)
    factors = RowFactors(gram(x), mask, 1e-3, max_bytes=0.6 * full_factor_bytes(mask, x))
    assert factors.block == 26
    parts = torch.block_diag(torch.ones(26, 26), torch.ones(25, 25)).double()
    assert relative(factors.solve(rhs), solved_row_by_row(gram(x) * parts, factors.damping, mask, rhs)) < 1e-10


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e20])
def test_damping_is_a_share_of_the_mean_diagonal_and_one_where_that_is_zero(scale):
    x, _, rhs, mask = rows_problem()
    mean = scale * float(gram(x).diagonal(dim1=1, dim2=2).mean())
    factors = RowFactors(scale * gram(x), mask, 0.25)
    assert factors.damping == pytest.approx(0.25 * mean if mean else 1.0, rel=1e-12)
    assert relative(factors.solve(rhs), solved_row_by_row(scale * gram(x), factors.damping, mask, rhs)) < 1e-9


def test_an_indefinite_matrix_is_damped_by_tens_and_no_more_than_it_needs():
    matrix = torch.diag(torch.tensor([1.0, 1.0, -0.5], dtype=torch.float64))[None]
    factors = RowFactors(matrix, torch.ones(1, 3, dtype=torch.bool), 1e-3)  # damping 5e-4, 5e-3, 5e-2, 0.5, 5 added up
    total = sum(5e-4 * 10**i for i in range(4))
    rhs = torch.ones(1, 3, dtype=torch.float64)
    assert relative(factors.solve(rhs), rhs / (matrix[0].diagonal() + total)) < 1e-9


def test_without_damping_rounding_is_the_first():
    matrix = torch.ones(1, 3, 3, dtype=torch.float64) * 8.0
    solved = RowFactors(matrix, torch.ones(1, 3, dtype=torch.bool), 0.0).solve(torch.ones(1, 3, dtype=torch.float64))
    assert float(solved.sum()) == pytest.approx(1 / 8, rel=1e-3), "ones are solved for as if nothing had been added"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("share", [2.0, 0.3])
@pytest.mark.parametrize("by_response", [False, True])
def test_masked_ridge_with_other_inputs(groups, share, by_response):
    x, x0, weight, mask = rows_problem(rows=6, inputs=48, samples=120, groups=groups)
    factors = RowFactors(gram(x), mask, 1e-3, max_bytes=share * full_factor_bytes(mask, x))
    assert (factors.block < 48) == (share < 1)
    y0 = torch.cat([weight[i : i + 6 // groups] @ x0[g].T for g, i in enumerate(range(0, 6, 6 // groups))])
    response = torch.stack([y0[i] @ x[i // (6 // groups)] for i in range(6)])
    how = {"response": response} if by_response else {"cross": gram(x, x0)}
    got = masked_least_squares(factors, weight, **how, tolerance=1e-12, iterations=200)
    assert relative(got, lstsq_row_by_row(x, x0, weight, mask, factors.damping)) < 1e-9
    same = masked_least_squares(factors, weight, tolerance=1e-12, iterations=200)
    assert relative(same, lstsq_row_by_row(x, x, weight, mask, factors.damping)) < 1e-9


def residual_of(factors, weight, x, got):
    """Relative residual of the normal equations."""

    def times(rows):
        return torch.where(factors.mask, rows @ gram(x)[0] + factors.damping * rows, 0.0)

    right = torch.where(factors.mask, weight @ gram(x)[0] + factors.damping * weight, 0.0)
    return float((right - times(got)).norm() / right.norm())


def test_blocks_are_made_up_for_by_iterations_to_the_tolerance_and_the_cap():
    x, _, weight, mask = rows_problem(rows=6, inputs=64, samples=200)
    factors = RowFactors(gram(x), mask, 1e-3, max_bytes=1.0)
    errors = [
        residual_of(factors, weight, x, masked_least_squares(factors, weight, iterations=i, tolerance=0.0))
        for i in (0, 1, 3, 10, 30)
    ]
    assert all(later < 0.9 * earlier for earlier, later in pairwise(errors))
    for tolerance in (1e-1, 1e-3, 1e-5):
        error = residual_of(factors, weight, x, masked_least_squares(factors, weight, tolerance=tolerance))
        assert 1e-3 * tolerance < error <= tolerance
    default = residual_of(factors, weight, x, masked_least_squares(factors, weight))
    assert 1e-8 < default <= 1e-5


def test_a_row_that_is_solved_already_stays_while_others_go_on():
    x, _, weight, mask = rows_problem(rows=6, inputs=64, samples=200)
    weight[2] = 0
    factors = RowFactors(gram(x), mask, 1e-3, max_bytes=1.0)
    got = masked_least_squares(factors, weight)
    assert torch.isfinite(got).all() and (got[2] == 0).all()


def test_masks_of_any_density_are_zero_off_the_mask():
    x, x0, weight, _ = rows_problem(rows=6, inputs=48, samples=120)
    for keep in (0.05, 0.3, 0.9):
        mask = random_mask((6, 48), keep)
        got = masked_least_squares(RowFactors(gram(x), mask, max_bytes=1e3), weight, gram(x, x0))
        assert (got[~mask] == 0).all() and (got[mask] != 0).all()


def test_by_default_a_solve_ends_at_a_hundred_thousandth_and_after_fifty_iterations():
    differs = set()
    for seed in range(12):
        x, _, weight, mask = rows_problem(rows=6, inputs=64, samples=200, seed=seed)
        factors = RowFactors(gram(x), mask, 1e-3, max_bytes=1.0)
        found = {t: masked_least_squares(factors, weight, tolerance=t) for t in (2e-5, 1e-5, 5e-6)}
        assert torch.equal(masked_least_squares(factors, weight), found[1e-5])
        differs |= {t for t in found if not torch.equal(found[t], found[1e-5])}
    assert differs == {2e-5, 5e-6}
    x, _, weight, mask = rows_problem(
        rows=6, inputs=64, samples=66, keep=0.95
    )  # so ill-conditioned that fifty are too few
    factors = RowFactors(gram(x), mask, 1e-9, max_bytes=1.0)
    found = [masked_least_squares(factors, weight, tolerance=0.0, **cap) for cap in ({}, {"iterations": 50})]
    more = masked_least_squares(factors, weight, tolerance=0.0, iterations=51)
    assert torch.equal(*found) and relative(more, found[0]) > 1e-9


def test_a_matrix_that_never_factors_is_damped_twelve_times_and_no_more(monkeypatch):
    damped = []

    def fails(matrix):
        damped.append(float(matrix[0, 0, 0]))
        return matrix, torch.ones(len(matrix), dtype=torch.int32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails)
    RowFactors(torch.eye(3, dtype=torch.float64)[None], torch.ones(2, 3, dtype=torch.bool), damping=1e-3)
    steps = [after - before for before, after in pairwise(damped)]
    assert len(damped) == 12 and damped[0] == pytest.approx(1.001)
    assert [after / before for before, after in pairwise(steps)] == pytest.approx([10.0] * 10)
