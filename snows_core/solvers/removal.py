"""What layer-wise least squares loses without a weight, and what it gains by one that was taken away.

For a row with kept set ``S``, damped Gram matrix ``A`` (:mod:`snows_core.solvers.least_squares`) and weights ``w_S``,
taking weight j away and re-fitting the others costs (Hassibi & Stork 1992, "Second order derivatives for network
pruning: Optimal Brain Surgeon", equation 5)::

    w_j^2 / [A_SS^-1]_jj

A weight p that is not kept gets its own least-squares value when it comes back and the others are re-fitted. With the
residual ``r = X y0' + damping w0 - A w`` of that row, it gains::

    g_p^2 / schur_p,    g_p = r_p - A_pS A_SS^-1 r_S,    schur_p = A_pp - A_pS A_SS^-1 A_Sp

which is what taking it away again would cost: both are on one scale, that of ``|| w X - w0 X0 ||^2``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.solvers.row_factors import ROOM, ROOM_HOST, RowFactors


def least_squares_values(factors: RowFactors, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return what each weight is worth to its row (formulas at the top of this file).

    Where factors are cut into blocks of inputs, a weight sees the others of its block alone: what a re-fit of the other
    blocks would repair is not counted, so that values come out too large, never too small.

    Args:
        factors: row factors without ``scale``; they hold Gram matrix, mask and damping. Where all rows keep
            everything, they may be those of one row a group.
        weight: (out, d), zero off the mask.
        residual: (out, d); None where nothing is off the mask.

    Returns:
        (out, d) numbers that are not negative.
    """
    gram, damping, precise = factors.gram, factors.damping, widest(factors.gram.device)
    group = torch.arange(factors.shape[0], device=gram.device) // (factors.shape[0] // len(gram))
    if residual is None:
        costs = torch.ones(factors.shape, device=gram.device, dtype=precise)
        for rows, support, factor in factors.read():
            costs[rows[:, None], support] = _inverse_diagonal(_inverse(factor.to(precise)))
        return (weight.to(precise).square() / costs.repeat_interleave(len(weight) // len(costs), 0)).to(weight.dtype)
    diagonal = gram.diagonal(dim1=1, dim2=2).to(precise)[group] + damping  # (out, d)
    values = residual.to(precise).square() / diagonal  # of a row that keeps nothing in a block
    for rows, support, factor in factors.read():
        first = int(support[0, 0]) // factors.block * factors.block
        block = torch.arange(first, min(first + factors.block, factors.shape[1]), device=gram.device)
        size = 24 * support.shape[1] * len(block)  # bytes of what a row takes below
        step = max(1, int(ROOM.get(gram.device.type, ROOM_HOST) // size))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            row, kept, lower = rows[part, None], support[part], factor[part].to(precise)
            padding = ~factors.mask[row, kept]  # (rows, width)
            inverse = _inverse(lower)  # (rows, width, width)
            values[row, block] = _gains(factors, row, (kept, block, padding), inverse, residual, diagonal)
            costs = weight[row, kept].to(precise).square() / _inverse_diagonal(inverse)
            values[row, kept] = torch.where(padding, values[row, kept], costs)
    return values.to(weight.dtype)


def _inverse(lower: Tensor) -> Tensor:
    """Return the inverse of lower triangular factors (rows, width, width)."""
    eye = torch.eye(lower.shape[-1], device=lower.device, dtype=lower.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    return inverse


def _inverse_diagonal(inverse: Tensor) -> Tensor:
    """Return the diagonal (rows, width) of ``(L L')^-1`` from ``L^-1``."""
    return inverse.square().sum(1)


def _gains(
    factors: RowFactors,
    row: Tensor,
    places: tuple[Tensor, Tensor, Tensor],
    inverse: Tensor,
    residual: Tensor,
    diagonal: Tensor,
) -> Tensor:
    """Return the gain (rows, block) of every input of a block, as if it were not kept.

    Args:
        factors: row factors.
        row: (rows, 1).
        places: kept inputs (rows, width), inputs of the block (block,), and which of the former are none (rows, width).
        inverse: of the rows' factors, (rows, width, width).
        residual: of all rows, (out, d).
        diagonal: of their damped Gram matrices, (out, d).
    """
    kept, block, padding = places
    group = row // (factors.shape[0] // len(factors.gram))
    cross = factors.gram[group[:, :, None], kept[:, :, None], block].to(inverse.dtype)  # A_Sp: (rows, width, block)
    half = inverse @ cross.masked_fill_(padding[:, :, None], 0.0)
    own = residual[row, kept].to(inverse.dtype).masked_fill_(padding, 0.0)  # r_S: (rows, width)
    pulled = (half * (inverse @ own[:, :, None])).sum(1)  # A_pS A_SS^-1 r_S: (rows, block)
    schur = (diagonal[row, block] - half.square().sum(1)).clamp_min(factors.damping)  # rounding may leave less
    return (residual[row, block].to(inverse.dtype) - pulled).square() / schur
