"""Layer-wise solvers and conjugate gradients against SciPy's, and how the row factors grow with width."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from clock import best, slope

from snows_core.masks.patterns import NM
from snows_core.solvers.conjugate_gradients import conjugate_gradients
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors


def layer(outputs, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * inputs, inputs, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return (x.T @ x)[None], weight, NM(1, 4).mask(weight)


def row_by_row(gram, weight, mask, damping):
    """The K = 0 problem as SciPy's user would write it: one Cholesky solve per output row."""
    gram, weight, mask = gram[0].numpy(), weight.numpy(), mask.numpy()
    solution = np.zeros_like(weight)
    for row, kept in enumerate(mask):
        matrix = gram[np.ix_(kept, kept)] + damping * np.eye(kept.sum())
        right = gram[kept] @ weight[row] + damping * weight[row, kept]
        solution[row, kept] = scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), right)
    return solution


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 576), (512, 512)])
def test_masked_least_squares_against_scipy(benchmark, outputs, inputs):
    gram, weight, mask = layer(outputs, inputs)

    def ours():
        factors = RowFactors(gram, mask, 1e-3)
        return factors, masked_least_squares(factors, weight)

    factors, solution = benchmark(ours)
    expected = row_by_row(gram, weight, mask, factors.damping)
    gap = float(np.abs(solution.numpy() - expected).max() / np.abs(expected).max())
    ratio = best(lambda: row_by_row(gram, weight, mask, factors.damping), 3) / best(ours, 3)
    benchmark.extra_info |= {"scipy / ours, seconds": round(ratio, 2), "largest relative gap": gap}
    print(f"\n{outputs} x {inputs}, 1:4: scipy row by row / ours = {ratio:.2f}; largest relative gap {gap:.1e}")
    assert gap < 1e-6


def test_conjugate_gradients_against_scipy(benchmark):
    gram, _, _ = layer(1, 600)
    matrix, b = gram[0], torch.randn(600, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    solution = benchmark(lambda: conjugate_gradients(lambda v: matrix @ v, b, relative=1e-8))
    array, right = matrix.numpy(), b.numpy()
    ratio = best(lambda: scipy.sparse.linalg.cg(array, right, rtol=1e-8)) / best(
        lambda: conjugate_gradients(lambda v: matrix @ v, b, relative=1e-8)
    )
    expected, _ = scipy.sparse.linalg.cg(array, right, rtol=1e-8)
    gap = float(np.abs(solution.x.numpy() - expected).max() / np.abs(expected).max())
    benchmark.extra_info |= {"scipy / ours, seconds": round(ratio, 2), "largest relative gap": gap}
    print(f"\nconjugate gradients, 600 unknowns: scipy / ours = {ratio:.2f}; largest relative gap {gap:.1e}")
    assert gap < 1e-6


def test_growth_of_row_factors_with_width(benchmark):
    sizes, seconds = (128, 256, 512, 1024), []
    for size in sizes:
        gram, _, mask = layer(size, size)
        seconds.append(best(lambda gram=gram, mask=mask: RowFactors(gram, mask, 1e-3, max_bytes=1e9), 2))
    benchmark.extra_info["log-log slope"] = round(slope(sizes, seconds), 2)
    print(f"\nseconds of row factors against width (d x d, 1:4): log-log slope {slope(sizes, seconds):.2f}")
    benchmark.pedantic(lambda: RowFactors(gram, mask, 1e-3, max_bytes=1e9), rounds=1)
