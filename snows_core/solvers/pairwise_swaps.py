"""Local search for the weights whose joint removal costs least, by swaps of a removed one for a kept one.

With the contribution ``c_j = A_j w_j`` of weight j (``A_j`` the j-th column of m gradients) the quadratic of a removed
set P is ``f(P) = w_P' (A'A / m + l I) w_P / 2``. It is a sum over pairs, as removed weights may cancel one another; a
swap of i in P for j outside changes it by (Yu et al. 2022, "The Combinatorial Brain Surgeon", equation 7 and algorithm
1)::

    a_i + b_j - c_i'c_j / m,    r = sum of c over P,
    a_i = (-r'c_i + c_i'c_i / 2) / m - l w_i^2 / 2,    b_j = (r'c_j + c_j'c_j / 2) / m + l w_j^2 / 2

In each round the removed weights of least ``a`` and the kept ones of least ``b`` are candidates, all pairs of these are
compared, and the best swap is taken until none lowers the quadratic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.devices import widest

CANDIDATES = 64  # of each kind, compared pair by pair
ROUNDS = 100
NEGLIGIBLE = 1e-9  # relative decrease, not worth a swap


def removal_quadratic(gradients: Tensor, weight: Tensor, removed: Tensor, damping: float) -> float:
    """Return f of a removed set.

    Args:
        gradients: (m, p).
        weight: (p,).
        removed: bool (p,).
        damping: l.
    """
    gone = torch.where(removed, weight, 0.0)
    joint = (gradients @ gone).to(widest(weight.device)).square().sum() / len(gradients)
    return float(joint + damping * gone.to(joint).square().sum()) / 2


def swap_removed(gradients: Tensor, weight: Tensor, removed: Tensor, movable: Tensor, damping: float) -> Tensor:
    """Improve a removed set by swaps.

    Args:
        gradients: (m, p).
        weight: (p,).
        removed: bool (p,), to begin with.
        movable: bool (p,), weights that may be swapped.
        damping: l.

    Returns:
        Another removed set of as many weights, whose quadratic is lower, or the same.
    """
    removed, precise, count = removed.clone(), widest(weight.device), len(gradients)
    own = (gradients.square().sum(0) / count * weight.square()).to(precise)  # c_j'c_j / m
    ridge = damping * weight.to(precise).square()
    for _ in range(ROUNDS):
        joint = gradients @ torch.where(removed, weight, 0.0)  # r
        pull = ((gradients.mT @ joint) / count * weight).to(precise)  # r'c_j / m
        change = torch.where(removed, own / 2 - pull - ridge / 2, own / 2 + pull + ridge / 2)
        places = [
            change.masked_fill(~(movable & kind), torch.inf).topk(min(CANDIDATES, len(change)), largest=False)
            for kind in (removed, ~removed)
        ]
        tried = torch.cat([found.indices[torch.isfinite(found.values)] for found in places])
        columns = (gradients[:, tried] * weight[tried]).to(precise)
        better = _swap(columns.mT @ columns / count, pull[tried], ridge[tried], removed[tried])
        if torch.equal(better, removed[tried]):
            break
        removed[tried] = better
    return removed


def _swap(gram: Tensor, pull: Tensor, ridge: Tensor, removed: Tensor) -> Tensor:
    """Return which of the candidates are removed after the best swaps among them.

    Args:
        gram: products of their contributions, divided by m.
        pull: products with r, divided by m.
        ridge: ``l w^2``.
        removed: which are removed to begin with.
    """
    removed, pull = removed.clone(), pull.clone()
    own = gram.diagonal()
    for _ in range(len(removed)):
        change = torch.where(removed, own / 2 - pull - ridge / 2, own / 2 + pull + ridge / 2)
        pairs = change[:, None] + change[None, :] - gram
        pairs.masked_fill_(~(removed[:, None] & ~removed[None, :]), torch.inf)
        if pairs.numel() == 0:
            break
        best = int(pairs.argmin())
        back, gone = best // len(removed), best % len(removed)
        if not float(pairs[back, gone]) < -NEGLIGIBLE * float(own[back] + own[gone] + ridge[back] + ridge[gone]):
            break
        removed[back], removed[gone] = False, True
        pull += gram[gone] - gram[back]
    return removed
