"""Least squares with an l1 penalty, and the multiplier at which so many weights are left (Net-Trim's convex problem).

For all rows of a layer and one multiplier mu::

    minimise over W   sum of rows (w - w*) H (w - w*)' / 2 + mu || w ||_1

which is the Lagrangian form of ``minimise || W ||_1 so that the error is at most a tolerance``: every tolerance has
its mu. The alternating direction method of multipliers splits it into a linear solve and a soft threshold, as in
Aghasi, Abdi & Romberg 2020, "Fast Convex Pruning of Deep Neural Networks". With the slope ``g = w H - w* H``, a W is
the minimum if and only if ``g_j = -mu sign(w_j)`` where w_j is not zero, and ``|g_j| <= mu`` where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.solvers.least_squares import grouped_product

RELAXED = 1.6  # over-relaxation, as is usual
EVERY = 10  # steps between two looks at the conditions of the minimum, and at the penalty
MOST = 2000  # steps for one multiplier


class L1LeastSquares:
    """The l1 problem of a layer; its last solution is where the next multiplier begins.

    Inputs are scaled so that H has a unit diagonal, which changes the steps and not the minimum; one eigendecomposition
    serves every penalty.

    Args:
        matrix: (groups, d, d) H, damped; group g serves rows g * out / groups and on.
        right: (out, d) ``w* H``.
        allowed: (out, d) bool, weights that may differ from zero.
        tolerance: by what share of mu the conditions of the minimum may be missed.

    Attributes:
        weight: (out, d) the last solution; zero at first.
    """

    def __init__(self, matrix: Tensor, right: Tensor, allowed: Tensor, tolerance: float = 1e-4) -> None:
        self.matrix, self.right, self.allowed, self.tolerance = matrix, right, allowed, tolerance
        diagonal = matrix.diagonal(dim1=1, dim2=2).sqrt()  # (groups, d)
        self.size = diagonal.repeat_interleave(len(right) // len(matrix), 0)  # (out, d)
        self.values, self.vectors = torch.linalg.eigh(matrix / diagonal[:, :, None] / diagonal[:, None, :])
        self.weight, self.dual, self.rho = torch.zeros_like(right), torch.zeros_like(right), 1.0

    @property
    def largest(self) -> float:
        """The multiplier from which on every weight is zero."""
        return float(torch.where(self.allowed, self.right.abs(), 0.0).max())

    def missed(self, mu: float) -> float:
        """Return by how much the conditions of the minimum are missed at most, as a share of ``mu``."""
        slope = grouped_product(self.matrix, self.weight) - self.right
        at_zero = (slope.abs() - mu).clamp(min=0)
        error = torch.where(self.weight == 0, at_zero, (slope + mu * self.weight.sign()).abs())
        return float(torch.where(self.allowed, error, 0.0).max()) / mu

    @torch.no_grad()
    def solve(self, mu: float) -> Tensor:
        """Return the minimum for a multiplier ``mu`` above zero, (out, d), from the last one on."""
        kept, dual = self.weight * self.size, self.dual  # in units of scaled inputs, as all on the way
        right = self.right / self.size
        for step in range(1, MOST + 1):
            pull = (right + self.rho * kept - dual).view(len(self.values), -1, right.shape[1])
            free = ((pull @ self.vectors / (self.values + self.rho)[:, None]) @ self.vectors.mT).view(right.shape)
            relaxed = RELAXED * free + (1 - RELAXED) * kept
            target = relaxed + dual / self.rho
            before, kept = kept, target.sign() * (target.abs() - mu / (self.rho * self.size)).clamp(min=0)
            kept = torch.where(self.allowed, kept, 0.0)
            dual = dual + self.rho * (relaxed - kept)
            if step % EVERY == 0:
                self.weight, self.dual = kept / self.size, dual
                if self.missed(mu) <= self.tolerance:
                    break
                # A penalty under which both residuals shrink alike (Boyd et al. 2011, section 3.4.1).
                primal, moved = float((free - kept).norm()), self.rho * float((kept - before).norm())
                self.rho *= 2.0 if primal > 10 * moved else 0.5 if moved > 10 * primal else 1.0
        return self.weight


def sparsest(problem: L1LeastSquares, keep: int, bisections: int = 40) -> float:
    """Look for the largest multiplier that leaves at least ``keep`` weights, by bisection.

    Args:
        problem: its ``weight`` is the solution there afterwards.
        keep: how many.
        bisections: steps at most; fewer where just as many are left.

    Returns:
        The multiplier; one near zero where there are no such many weights other than zero.
    """
    high = max(problem.largest, torch.finfo(problem.right.dtype).tiny)
    low, least = high / 2, 1e-9 * high
    while int((problem.solve(low) != 0).sum()) < keep and low > least:
        high, low = low, low / 2
    best, dual = problem.weight, problem.dual
    for _ in range(bisections):
        if int((best != 0).sum()) == keep or low <= least:
            break
        middle = (low * high) ** 0.5
        if int((problem.solve(middle) != 0).sum()) < keep:
            high = middle
        else:
            low, best, dual = middle, problem.weight, problem.dual
    problem.weight, problem.dual = best, dual
    return low
