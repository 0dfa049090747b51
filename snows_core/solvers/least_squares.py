"""Layer-wise least squares (K = 0): the ridge solution on a mask.

For a layer with weight rows ``w_i`` (out of them), inputs ``X`` (one column per image and position) and dense inputs
``X0``, the K = 0 problem is, row by row on the kept set ``S_i``::

    minimise || w_i X - w0_i X0 ||^2 + damping || w_i - w0_i ||^2
    so that  (A_SS + damping I) w_S = (C w0 + damping w0)_S

with the Gram matrix ``A = X X'`` and the cross Gram matrix ``C = X X0'``, of which only the products ``C w0 = X y0'``
with the dense outputs ``y0 = w0 X0`` (without bias) are needed. Every row has its own support, hence its own
Cholesky factor; the same factors precondition the K-step Newton system. The mask has to be inside the factor, see the
benchmarks. L-OBS (Dong et al. 2017), Net-Trim (Aghasi et al. 2017), OBC (Frantar & Alistarh 2022), SparseGPT (Frantar &
Alistarh 2023) and ALPS (Meng et al. 2024) stop at K = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from snows_core.distributed import current
from snows_core.solvers.row_factors import RowFactors


class Preconditioner(Protocol):
    """A masked problem, and an approximate solution of it: row factors, or the diagonal alone."""

    gram: Tensor
    mask: Tensor
    damping: float

    def solve(self, rhs: Tensor) -> Tensor:
        """Return the approximate solution (out, d) for right-hand sides (out, d), zero off the mask."""


@dataclass
class Diagonal:
    """The diagonal of ``A + damping I`` as a preconditioner, which takes no room (Jacobi's).

    Attributes:
        gram: (groups, d, d) Gram matrices A; group g serves rows g * out / groups and on.
        mask: (out, d) bool, True where a weight is kept.
        damping: a number, not relative.
    """

    gram: Tensor
    mask: Tensor
    damping: float

    def solve(self, rhs: Tensor) -> Tensor:
        """Divide ``rhs`` (out, d) by the diagonal; zero off the mask."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2) + self.damping  # (groups, d)
        return torch.where(self.mask, rhs / diagonal.repeat_interleave(len(rhs) // len(diagonal), 0), 0.0)


def grouped_product(matrix: Tensor, rows: Tensor) -> Tensor:
    """Multiply the rows (out, d) of each group by the group's matrix (groups, d, d)."""
    grouped = rows.view(matrix.shape[0], -1, rows.shape[1])  # (groups, out / groups, d)
    return (grouped @ matrix.transpose(1, 2)).reshape(rows.shape)


def residual(factors: RowFactors, weight: Tensor, dense: Tensor, response: Tensor | None = None) -> Tensor:
    """Return ``X y0' + damping w0 - (A + damping I) w`` of every row: half the negative gradient of the K = 0 problem.

    Args:
        factors: row factors; their Gram matrix and damping count.
        weight: (out, d) where.
        dense: (out, d) dense weight rows w0.
        response: (out, d) rows ``X y0'``; default: dense inputs equal inputs.

    Returns:
        (out, d), not zero off the mask.
    """
    response = grouped_product(factors.gram, dense) if response is None else response
    return response - grouped_product(factors.gram, weight) + factors.damping * (dense - weight)


def masked_least_squares(
    factors: Preconditioner,
    dense: Tensor,
    cross: Tensor | None = None,
    *,
    response: Tensor | None = None,
    start: Tensor | None = None,
    iterations: int = 50,
    tolerance: float = 1e-5,
) -> Tensor:
    """Solve the K = 0 problem on the mask (formula at the top of this file).

    Conjugate gradients run on all rows at once, each row with step lengths of its own, preconditioned by the factors.

    Args:
        factors: row factors without ``scale``, or another preconditioner; they hold Gram matrix, mask and damping.
        dense: (out, d) dense weight rows w0.
        cross: (groups, d, d) cross Gram matrix C; default: the Gram matrix itself (dense inputs equal inputs).
        response: (out, d) rows ``X y0'`` of :func:`normal_equations`, in place of ``cross``.
        start: (out, d) where to begin, zero off the mask; default: what the factors take for the solution.
        iterations: cap on conjugate-gradient iterations; full factors need one or two, blocks a few more.
        tolerance: relative residual at which a solve ends.

    Returns:
        (out, d) rows, zero off the mask.
    """
    mask, damping = factors.mask, factors.damping
    if response is None:
        response = grouped_product(factors.gram if cross is None else cross, dense)
    rhs = torch.where(mask, response + damping * dense, 0.0)  # (out, d), as all that follows
    x = factors.solve(rhs) if start is None else start
    residual = rhs - torch.where(mask, grouped_product(factors.gram, x) + damping * x, 0.0)
    target = tolerance * float(rhs.norm())
    z = factors.solve(residual)
    p, rz = z, (residual * z).sum(1, keepdim=True)  # (out, 1): one number a row
    for _ in range(iterations):
        if current().agreed([float(residual.norm())])[0] <= target:
            break
        product = torch.where(mask, grouped_product(factors.gram, p) + damping * p, 0.0)
        curvature = (p * product).sum(1, keepdim=True)
        alpha = torch.where(curvature > 0, rz / curvature, 0.0)
        x, residual = x + alpha * p, residual - alpha * product
        z = factors.solve(residual)
        new = (residual * z).sum(1, keepdim=True)
        p, rz = z + torch.where(rz > 0, new / rz, 0.0) * p, new
    return x
