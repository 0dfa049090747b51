"""ExactOBS: weights of a row removed one after the other, each time the one that costs least (Frantar & Alistarh 2022).

At the minimum w of a row's loss on its kept inputs S (:mod:`snows_core.solvers.damped_gram`), removing input p and
re-fitting the others costs, and does ("Optimal Brain Compression", equation 3)::

    w_p^2 / [H_SS^-1]_pp,    w <- w - w_p / [H_SS^-1]_pp [H_SS^-1]_:p

and the inverse without p follows by one step of Gaussian elimination (Lemma 1)::

    H^-1 <- H^-1 - [H^-1]_:p [H^-1]_p: / [H^-1]_pp

So a removal takes O(d^2) of a row of d inputs, and all removals of a row O(d^3). What is subtracted is kept as
vectors at first, and from the matrix some of them at a time: a step reads a few rows in place of the whole matrix.
Rows are independent of one another and go on side by side, as many as memory holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from snows_core.devices import factor_bytes
from snows_core.solvers.damped_gram import DampedGram

LAZY = 64  # removals whose vectors are subtracted from the inverse at a time


class _Rows:
    """Rows on their way: which inputs are kept, the weights, and the inverse on the kept inputs.

    Args:
        damped: the quadratic.
        inverse: of its matrices, (groups, d, d).
        group: (r,) group of each row.
        weight: (r, d) minimiser of each row on all inputs.
    """

    def __init__(self, damped: DampedGram, inverse: Tensor, group: Tensor, weight: Tensor) -> None:
        self.shared, self.group, self.weight = inverse, group, weight.clone()
        self.own: Tensor | None = None  # (r, d, d), once it is no longer that of all rows
        self.kept = torch.ones_like(weight, dtype=torch.bool)
        self.diagonal = inverse.diagonal(dim1=1, dim2=2)[group].clone()  # (r, d)
        # No inverse has less on its diagonal than this, whatever rounding leaves.
        self.least = damped.matrix.diagonal(dim1=1, dim2=2)[group].reciprocal()
        self.vectors = weight.new_empty(len(weight), LAZY, weight.shape[1])
        self.made = 0
        self.rows = torch.arange(len(weight), device=weight.device)

    def costs(self) -> Tensor:
        """Return what removing each input costs, (r, d); of one that is removed a meaningless number."""
        return self.weight.square() / self.diagonal.maximum(self.least)

    def remove(self, p: Tensor, active: Tensor) -> None:
        """Remove one input p (r,) of each row that is active (r,)."""
        known = self.vectors[:, : self.made]  # (r, made, d)
        column = self.shared[self.group, p] if self.own is None else self.own[self.rows, p]  # (r, d)
        own = known.gather(2, p[:, None, None].expand(-1, self.made, 1))  # (r, made, 1)
        column = torch.where(self.kept, column - (own.mT @ known).squeeze(1), 0.0)
        pivot = column[self.rows, p].maximum(self.least[self.rows, p])
        factor = active.to(pivot.dtype) / pivot
        self.weight -= column * (factor * self.weight[self.rows, p])[:, None]
        vector = column * factor.sqrt()[:, None]
        self.diagonal -= vector.square()
        self.vectors[:, self.made] = vector
        self.made += 1
        self.kept[self.rows, p] &= ~active
        self.weight = torch.where(self.kept, self.weight, 0.0)
        if self.made == LAZY:
            before = self.shared[self.group] if self.own is None else self.own
            self.own = before.baddbmm_(self.vectors.mT, self.vectors, alpha=-1)
            self.made = 0


def _batches(damped: DampedGram, weight: Tensor, max_bytes: float) -> Iterator[tuple[slice, _Rows]]:
    """Yield as many rows at a time as have room."""
    rows, width = weight.shape
    size = weight.element_size() * width * (2 * width + LAZY)  # bytes of a row: its inverse, and a copy on the way
    step = max(1, int(min(max_bytes, factor_bytes(weight.device)) // size))
    inverse, group = damped.inverse(), damped.group_of(rows)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield part, _Rows(damped, inverse, group[part], weight[part])


@torch.no_grad()
def removal_order(
    damped: DampedGram, weight: Tensor, allowed: Tensor, max_bytes: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Remove all inputs of every row, the cheapest first (Algorithm 1).

    Args:
        damped: the quadratic of all rows.
        weight: (out, d) its minimiser.
        allowed: (out, d) bool; other inputs are removed before any of these, at no cost that counts.
        max_bytes: bound for the inverses of rows that are on their way together; one row always has room.

    Returns:
        The inputs of each row in the order of their removal, and what each removal cost, (out, d) both; -1 for inputs
        that are not allowed.
    """
    order = torch.empty(weight.shape, dtype=torch.long, device=weight.device)
    costs = torch.empty_like(weight)
    for part, rows in _batches(damped, weight, max_bytes):
        may, active = allowed[part], torch.ones_like(rows.group, dtype=torch.bool)
        for step in range(weight.shape[1]):
            cost = rows.costs().masked_fill(~may, -1.0).masked_fill(~rows.kept, torch.inf)
            costs[part, step], order[part, step] = cost.min(1)
            rows.remove(order[part, step], active)
    return order, costs


def cheapest_removals(order: Tensor, costs: Tensor, count: int) -> Tensor:
    """Remove ``count`` weights of all rows, the next one always from the row where it costs least (Algorithm 2).

    A row's costs may fall on the way, and then its next removals follow at once: they are no dearer than what every
    other row asks for. So the steps come in the order of the largest cost up to each.

    Args:
        order: (out, d) from :func:`removal_order`.
        costs: (out, d), likewise.
        count: how many; inputs that are not allowed are removed even where that makes more.

    Returns:
        (out, d) bool, True where a weight is kept.

    >>> order = torch.tensor([[0, 1], [1, 0]])
    >>> cheapest_removals(order, torch.tensor([[3.0, 1.0], [2.0, 2.5]]), 2).tolist()
    [[True, True], [False, False]]
    """
    rows, width = order.shape
    count = max(count, int((costs < 0).sum()))
    first = costs.cummax(1).values.flatten().argsort(stable=True)[:count]
    removed = torch.bincount(first // width, minlength=rows)  # (out,)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(width, device=order.device).expand_as(order))
    return place >= removed[:, None]


@torch.no_grad()
def removal_in_groups(
    damped: DampedGram, weight: Tensor, allowed: Tensor, groups: Tensor, keep: int, max_bytes: float = math.inf
) -> Tensor:
    """Remove the cheapest input of those whose group has more than ``keep`` left, until none has.

    Args:
        damped: the quadratic of all rows.
        weight: (out, d) its minimiser.
        allowed: (out, d) bool; other inputs are removed first, and where that leaves a group fewer, it has fewer.
        groups: (count, m) inputs of each group; every input stands in one.
        keep: how many stay in a group.
        max_bytes: see :func:`removal_order`.

    Returns:
        (out, d) bool, True where a weight is kept.
    """
    mask = torch.empty_like(allowed)
    owner = torch.empty(weight.shape[1], dtype=torch.long, device=weight.device)
    owner[groups.flatten()] = torch.arange(len(groups), device=weight.device).repeat_interleave(groups.shape[1])
    for part, rows in _batches(damped, weight, max_bytes):
        may = allowed[part]
        for _ in range(weight.shape[1]):
            crowded = (rows.kept[:, groups].sum(2) > keep)[:, owner]  # (r, d)
            possible = rows.kept & (crowded | ~may)
            cost, p = rows.costs().masked_fill(~may, -1.0).masked_fill(~possible, torch.inf).min(1)
            active = torch.isfinite(cost)
            if not bool(active.any()):
                break
            rows.remove(p, active)
        mask[part] = rows.kept
    return mask
