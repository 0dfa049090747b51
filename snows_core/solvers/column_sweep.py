"""One sweep over the columns of a layer: each column is pruned in all rows, and the columns behind it make up for that.

The optimal brain surgeon needs the inverse of every row's own matrix. With one order of the inputs for all rows, and
every weight fixed once its column is passed, all rows share one sequence of inverses, those of H without its first
inputs, and these stand in one Cholesky factor: ``H^-1 = U' U`` with U upper triangular. At column j with the weights
w of a row (Frantar & Alistarh 2023, "SparseGPT", Algorithm 1)::

    cost of removing w_j:  w_j^2 / U_jj^2,    and where it goes:  w_j: <- w_j: - w_j / U_jj  U_j,j:

which leaves w the minimum of the row's loss over the columns behind j. The columns of a block are brought up to date at
once, those behind the block by one product when it is done.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snows_core.solvers.row_factors import damped_cholesky

BLOCK = 128  # columns of a block; no number depends on it


def inverse_factor(matrix: Tensor) -> Tensor:
    """Return the upper triangular U with ``matrix^-1 = U' U``, (groups, d, d), without forming the inverse.

    >>> inverse_factor(torch.tensor([[[4.0, 0.0], [0.0, 0.25]]])).tolist()
    [[[0.5, 0.0], [0.0, 2.0]]]
    """
    # Of the matrix read backwards, the lower factor is an upper one of the matrix itself: matrix = R R', U = R^-1.
    upper = damped_cholesky(matrix.flip(1, 2), 0.0).flip(1, 2)
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    inverse: Tensor = torch.linalg.solve_triangular(upper, eye, upper=True)
    return inverse


@torch.no_grad()
def column_sweep(
    matrix: Tensor, weight: Tensor, choose: Callable[[slice, Tensor], Tensor], part: int, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Prune the columns of a layer from the first to the last.

    Args:
        matrix: (groups, d, d) H, damped; group g serves rows g * out / groups and on.
        weight: (out, d) minimiser of the rows' losses, columns in the order of the matrix.
        choose: is given some columns and what removing each of their weights costs now, (out, columns), and returns
            which stay, bool; called for every ``part`` columns when the sweep reaches the first of them.
        part: columns that are chosen together.
        block: columns of a block, brought to a multiple of ``part``.

    Returns:
        The weights, zero where they were removed, and the mask; (out, d) both.
    """
    rows, width = weight.shape
    factor = inverse_factor(matrix)
    diagonal = factor.diagonal(dim1=1, dim2=2)  # (groups, d)
    left = weight.view(len(matrix), -1, width).clone()  # (groups, out / groups, d)
    mask = torch.ones_like(left, dtype=torch.bool)
    block = max(part, block // part * part)
    for start in range(0, width, block):
        stop = min(start + block, width)
        removed = torch.zeros_like(left[:, :, start:stop])  # what was removed of each column, over U_jj
        for j in range(start, stop):
            if j % part == 0:
                columns = slice(j, min(j + part, width))
                costs = (left[:, :, columns] / diagonal[:, None, columns]).square()
                mask[:, :, columns] = choose(columns, costs.view(rows, -1)).view_as(costs)
            gone = torch.where(mask[:, :, j], 0.0, left[:, :, j] / diagonal[:, None, j])  # (groups, out / groups)
            left[:, :, j:stop] -= gone[:, :, None] * factor[:, None, j, j:stop]
            removed[:, :, j - start] = gone
        left[:, :, stop:] -= removed @ factor[:, start:stop, stop:]
    mask = mask.view(rows, width)
    return torch.where(mask, left.view(rows, width), 0.0), mask
