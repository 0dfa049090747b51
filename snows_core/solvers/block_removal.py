"""Weights taken away one after the other in each of many blocks, every one the cheapest after those before it.

In a block with inverse curvature ``F^-1`` the next to go is that of least ``w_j^2 / (2 [F^-1]_jj)``; the others move by
``-w_j F^-1 e_j / [F^-1]_jj``, and j leaves the inverse by one step of Gaussian elimination (Hassibi & Stork 1992,
equation 5; Frantar & Alistarh 2022, "Optimal Brain Compression", lemma 1)::

    F^-1 <- F^-1 - F^-1 e_j e_j' F^-1 / [F^-1]_jj

so that correlations with what is gone already count. All blocks take a step at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def removal_costs(weight: Tensor, inverse: Tensor, present: Tensor) -> Tensor:
    """Return what each removal costs at its turn, made to rise strictly along a block's order of removal.

    Where a weight costs less than one before it, what it says is that both should go together: it gets the least number
    above that one's, so that whatever the highest costs are that stay, those that go are the first of their block.

    Args:
        weight: (blocks, size).
        inverse: (blocks, size, size), of a positive definite matrix.
        present: (blocks, size), which places hold a weight at all.

    Returns:
        (blocks, size), infinite where there is no weight.
    """
    weight, inverse, alive = weight.to(inverse.dtype, copy=True), inverse.clone(), present.clone()
    rows = torch.arange(len(weight), device=weight.device)
    costs = torch.full_like(weight, torch.inf)
    infinity = torch.full_like(weight[:, 0], torch.inf)
    last = torch.zeros_like(weight[:, 0])
    for _ in range(int(present.sum(1).max())):
        own = torch.where(alive, weight.square() / (2 * inverse.diagonal(dim1=1, dim2=2)), torch.inf)
        cost, place = own.min(1)
        goes = torch.isfinite(cost)  # blocks that still have a weight
        last = torch.where(goes, torch.maximum(cost, torch.nextafter(last, infinity)), last)
        costs[rows[goes], place[goes]] = last[goes]
        column = torch.where(goes[:, None], inverse[rows, :, place], 0.0)  # F^-1 e_j
        scale = torch.where(goes, inverse[rows, place, place], 1.0)[:, None]
        weight -= weight[rows, place][:, None] * column / scale
        inverse.baddbmm_((column / scale)[:, :, None], column[:, None, :], alpha=-1)
        alive[rows, place] = False
        # What is gone keeps a place of its own, so that no later quotient is 0 / 0.
        inverse[rows[goes], place[goes], place[goes]] = 1.0
        weight[rows[goes], place[goes]] = 0.0
    return costs


def without(weight: Tensor, inverse: Tensor, kept: Tensor) -> Tensor:
    """Return the weights that minimise a block's quadratic with those off ``kept`` zero, all removed together.

    ``w - F^-1_{:Q} (F^-1_{QQ})^-1 w_Q`` for the set Q of those that go: what removal one by one leads to in any order.

    Args:
        weight: (blocks, size).
        inverse: (blocks, size, size).
        kept: (blocks, size).
    """
    weight = weight.to(inverse.dtype)
    gone = ~kept
    both = gone[:, :, None] & gone[:, None, :]
    system = torch.where(both, inverse, torch.diag_embed(kept.to(inverse.dtype)))
    shares = torch.linalg.solve(system, torch.where(gone, weight, 0.0)[:, :, None])
    return torch.where(kept, weight - (inverse @ shares).squeeze(2), 0.0)
