"""Eigenvalues from products alone: what Lanczos finds of a symmetric matrix that is too large to be written down."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snows_core.errors import invalid_argument


def ritz_values(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Return the Ritz values of a symmetric matrix after some steps of Lanczos, with full reorthogonalisation.

    They are the eigenvalues of the matrix on the Krylov space of the start, and lie between its smallest and its
    largest eigenvalue. So a negative one proves that the matrix is not positive semidefinite; that none is negative
    proves nothing.

    Args:
        product: maps a tensor to its product with the matrix, of the same shape and dtype.
        start: any tensor that is not zero; where weights are masked, zero at the removed ones.
        steps: products to take; fewer are taken where the space is exhausted.

    Returns:
        At most ``steps`` values in ascending order.

    Raises:
        SnowsError: on a zero start, or fewer than one step.

    Source: C. Lanczos, "An iteration method for the solution of the eigenvalue problem", J. Res. NBS 45 (1950).
    """
    if steps < 1:
        raise invalid_argument("steps", steps, "at least 1")
    if not float(start.norm()) > 0:
        raise invalid_argument("start", "zeros", "a tensor that is not zero")
    basis = [start.flatten() / start.norm()]
    diagonal, beside = [], []
    for _ in range(steps):
        image = product(basis[-1].view_as(start)).flatten()
        diagonal.append(image @ basis[-1])
        scale, space = image.norm(), torch.stack(basis)  # (steps so far, n)
        for _ in range(2):  # once is not enough where the rest is small
            image = image - space.T @ (space @ image)
        rest = image.norm()
        if float(rest) <= 1e-10 * float(scale):
            break
        beside.append(rest)
        basis.append(image / rest)
    size = len(diagonal)
    matrix = torch.diag(torch.stack(diagonal))
    if size > 1:
        off = torch.diag(torch.stack(beside[: size - 1]), 1)
        matrix = matrix + off + off.T
    return torch.linalg.eigvalsh(matrix)
