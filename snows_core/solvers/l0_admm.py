"""Least squares under a pattern by the alternating direction method of multipliers (ALPS, Meng et al. 2024).

A row's loss ``(w - w*) H (w - w*)' / 2`` is minimised over W, the pattern is held by D, a multiplier V pulls the two
together, and a penalty rho grows until the support of D stands still ("ALPS: Improved Optimization for Highly Sparse
One-Shot Pruning for Large Language Models", Algorithm 1)::

    W <- (H + rho I)^-1 (H w* - V + rho D),    D <- P(W + V / rho),    V <- V + rho (W - D)

P keeps the largest weights under the pattern. Inputs are scaled beforehand so that H has a unit diagonal. One
eigendecomposition of H serves every rho. Steps reuse two matrices of the size of W, as a layer may be a large share of
the memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# As in the paper, from memory and not read again: rho begins at START; every EVERY steps it grows by the first factor
# whose share of the kept weights has been reached by those that came into the support or left it since.
START = 0.1
EVERY = 3
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
MOST = 300  # steps; rho has grown by more than four orders of magnitude then


@torch.no_grad()
def pattern_admm(
    matrix: Tensor, right: Tensor, start: Tensor, highest: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, int]:
    """Look for the support under a pattern on which least squares ends lowest.

    Args:
        matrix: (groups, d, d) H, damped; group g serves rows g * out / groups and on.
        right: (out, d) ``w* H``.
        start: (out, d) where D begins, for instance w*.
        highest: is given sizes (out, d) and returns the mask, bool, of the largest under the pattern.

    Returns:
        D (out, d), which is zero off its mask, the mask, and the number of steps.
    """
    groups, width = len(matrix), right.shape[1]
    diagonal = matrix.diagonal(dim1=1, dim2=2).sqrt()  # (groups, d): size of each input
    values, vectors = torch.linalg.eigh(matrix / diagonal[:, :, None] / diagonal[:, None, :])
    shape, size = right.shape, diagonal[:, None, :]
    right, kept = (part.view(groups, -1, width) for part in (right, start))
    right, kept = right / size, kept * size
    multiplier, rho = torch.zeros_like(kept), START
    free, target = torch.empty_like(kept), torch.empty_like(kept)  # both hold other things on the way
    mask = before = highest(kept.abs().view(shape))
    count, step = int(mask.sum()), 0
    for step in range(1, MOST + 1):
        pull = torch.sub(right, multiplier, out=free).add_(torch.mul(kept, rho, out=target))
        torch.matmul(pull, vectors, out=target).div_((values + rho)[:, None])
        torch.matmul(target, vectors.mT, out=free)
        torch.div(multiplier, rho, out=target).add_(free)
        mask = highest(target.abs().view(shape))
        kept.copy_(target).masked_fill_(~mask.view(kept.shape), 0.0)
        multiplier.add_(free.sub_(kept).mul_(rho))
        if step % EVERY == 0:
            changed, before = int((mask ^ before).sum()), mask
            if not changed:
                break
            rho *= next(factor for share, factor in GROWTH if changed >= share * count)
    return kept.div_(size).view(shape), mask, step
