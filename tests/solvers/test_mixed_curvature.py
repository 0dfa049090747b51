"""A Fisher mixed with the preconditioner's matrix, against dense matrices and a quadratic whose minimum is known."""

from itertools import pairwise

import pytest
import torch
from fishers import gaussian

from snows_core.settings import NewtonOptions
from snows_core.solvers.mixed_curvature import MixedCurvature
from snows_core.solvers.newton_cg import Linearisation, newton

SIZE = 8


class Quadratic:
    """``(w - c)' H (w - c) / 2`` whose products are with another matrix."""

    images = 1

    def __init__(self, products):
        square = gaussian(SIZE, SIZE, seed=1)
        self.hessian, self.centre, self.products = square @ square.T + torch.eye(SIZE), gaussian(SIZE, seed=2), products

    def value(self, weight):
        return float((weight - self.centre) @ self.hessian @ (weight - self.centre) / 2)

    def linearise(self, weight, curvature_images=None):
        slope = self.hessian @ (weight - self.centre)
        return Linearisation(self.value(weight), slope, lambda v: self.products @ v)


def mixed(share, rows=3):
    few = gaussian(rows, SIZE, seed=3)
    quadratic = Quadratic(few.T @ few / max(rows, 1))
    partner = torch.diag(quadratic.hessian.diagonal())
    of = MixedCurvature(quadratic, lambda v: partner @ v, lambda g: g / partner.diagonal(), share)
    return of, quadratic, partner


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_products_are_with_the_mixture_on_one_scale(share):
    of, quadratic, partner = mixed(share)
    at, weight = of.linearise(torch.zeros(SIZE, dtype=torch.float64)), torch.zeros(SIZE, dtype=torch.float64)
    u = torch.linalg.solve(partner, at.gradient)
    tau = float(u @ partner @ u) / float(u @ quadratic.products @ u)
    wanted, v = share * tau * quadratic.products + (1 - share) * partner, gaussian(SIZE, seed=4)
    assert torch.allclose(at.product(v), wanted @ v, rtol=1e-12)
    assert float(u @ wanted @ u) == pytest.approx(float(u @ partner @ u), rel=1e-12)  # whatever the share
    assert at.loss == of.value(weight) == quadratic.value(weight) and of.images == 1


def test_a_fisher_of_nothing_leaves_the_partner():
    of, _, partner = mixed(0.5, rows=0)
    v = gaussian(SIZE, seed=4)
    assert torch.allclose(of.linearise(torch.zeros_like(v)).product(v), 0.5 * partner @ v, rtol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_newton_steps_with_it_end_at_the_minimum_and_never_rise(share):
    of, quadratic, partner = mixed(share)
    options = NewtonOptions(steps=3000, tolerance=0.0, cg_iterations=2 * SIZE, cg_progress=0.0, cg_relative=1e-12)
    done = newton(of, torch.zeros(SIZE, dtype=torch.float64), options, lambda g: g / partner.diagonal())
    assert all(after <= before for before, after in pairwise(done.losses))
    # Linear convergence, which ends where a double no longer tells one loss from the next: half of its digits.
    assert torch.allclose(done.weight, quadratic.centre, atol=1e-5)
