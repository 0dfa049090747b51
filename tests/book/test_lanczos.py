"""lanczos.py: Ritz values beside the eigenvalues of matrices that are written down."""

import pytest
import torch

from snows_core.book.lanczos import ritz_values
from snows_core.errors import SnowsError


def a_matrix(eigenvalues):
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


START = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_all_steps_give_all_eigenvalues_and_fewer_stay_between_them():
    values = [-3.0, -0.5, 0.1, 1.0, 2.0, 4.0, 8.0, 9.0]
    matrix = a_matrix(values)

    def product(u):
        return (matrix @ u.flatten()).view_as(u)

    assert torch.allclose(ritz_values(product, START, 8), torch.tensor(values, dtype=torch.float64), atol=1e-10)
    few = ritz_values(product, START, 3)
    assert len(few) == 3 and -3 < few[0] < 0 < few[-1] < 9  # rounding aside, strictly inside


def test_the_walk_ends_where_the_space_is_exhausted():
    assert torch.allclose(ritz_values(lambda u: 2 * u, START, 5), torch.tensor([2.0], dtype=torch.float64))


def test_no_start_and_no_steps_are_refused():
    with pytest.raises(SnowsError, match="not zero"):
        ritz_values(lambda u: u, torch.zeros(3), 2)
    with pytest.raises(SnowsError, match="at least 1"):
        ritz_values(lambda u: u, START, 0)
