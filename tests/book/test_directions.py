"""directions.py: mixtures equal what a dense solve gives, and Newton's own direction holds all of its decrease."""

import pytest
import torch
from toys import random_images, relative, small_resnet

from snows_core.book.contests.directions import direction_quality, mixed_direction
from snows_core.book.contests.fits import layer_fits
from snows_core.network import Network


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_mixture_is_the_dense_solve(share):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    root = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    matrix, gradient = root @ root.T + torch.eye(7, dtype=torch.float64), rows.mean(0)
    fisher, p = rows.T @ rows / 4, torch.linalg.solve(matrix, gradient)
    omega = (p @ matrix @ p) / (p @ fisher @ p)
    expected = -torch.linalg.solve(share * omega * fisher + (1 - share) * matrix, gradient)
    assert relative(mixed_direction(rows, gradient, lambda v: torch.linalg.solve(matrix, v), share), expected) < 1e-9


def test_no_direction_promises_more_than_newton():
    fit = next(layer_fits(Network(small_resnet()), ["layer1.conv1"], "1:2", 2, random_images(8)))
    table = direction_quality(fit, [1e-6, 0.5, 0.999])
    assert ((table["promised"] > 0) & (table["promised"] < 1.001)).all() and (table["layer"] == fit.name).all()
    plain = table[table["share"].isna()].set_index("direction")["promised"]
    mixed = table[table["share"] == 1e-6].set_index("direction")["promised"]  # hardly any Fisher: the partner alone
    assert mixed["Fisher with M"] == pytest.approx(plain["preconditioned gradient"], rel=1e-3)
    assert mixed["Fisher with I"] == pytest.approx(plain["gradient"], rel=1e-3)
