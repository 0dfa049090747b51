"""ExactOBS: weights of a row removed one after the other, each time the one that costs least (Frantar & Alistarh 2022).

At the minimum w of a row's loss on its kept inputs S (:mod:`snows_core.solvers.damped_gram`), removing input p and
re-fitting the others costs, and does ("Optimal Brain Compression", equation 3)::

    w_p^2 / [H_SS^-1]_pp,    w <- w - w_p / [H_SS^-1]_pp [H_SS^-1]_:p

and the inverse without p follows by one step of Gaussian elimination (Lemma 1)::

    H^-1 <- H^-1 - [H^-1]_:p [H^-1]_p: / [H^-1]_pp

What is subtracted is kept as vectors at first, and from the matrix some of them at a time: a step reads a few rows in
place of the whole matrix. Now and then inputs that are gone leave the matrix, too, so that all removals of a row of d
inputs take not d^3 multiply-adds but 0.4 d^3. Rows are independent of one another and go on side by side, as many as
memory holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from snows_core.devices import factor_bytes
from snows_core.solvers.damped_gram import DampedGram

LAZY = 64  # removals whose vectors are subtracted from the inverse at a time
SHRUNK = 0.8  # share of its width at which a matrix is copied without the inputs that are gone
COPIES = 2  # of a row's inverse in memory at a time: what was, and what will be


class _Rows:
    """Rows on their way: the inputs that they still have places for, the weights, and the inverse on the kept ones.

    Args:
        damped: the quadratic.
        inverse: of its matrices, (groups, d, d).
        group: (r,) group of each row.
        weight: (r, d) minimiser of each row on all inputs.

    Attributes:
        inputs: (r, w) the input at each place; w begins at d and shrinks.
        kept: (r, w) bool, False at places whose input is removed already.
    """

    def __init__(self, damped: DampedGram, inverse: Tensor, group: Tensor, weight: Tensor) -> None:
        self.shared, self.group, self.weight = inverse, group, weight.clone()
        self.own: Tensor | None = None  # (r, w, w), once it is no longer that of all rows
        self.inputs = torch.arange(weight.shape[1], device=weight.device).expand_as(weight)
        self.kept = torch.ones_like(weight, dtype=torch.bool)
        self.diagonal = inverse.diagonal(dim1=1, dim2=2)[group].clone()
        # No inverse has less on its diagonal than this, whatever rounding leaves.
        self.least = damped.matrix.diagonal(dim1=1, dim2=2)[group].reciprocal()
        self.vectors = weight.new_empty(len(weight), LAZY, weight.shape[1])
        self.made = 0
        self.rows = torch.arange(len(weight), device=weight.device)

    def costs(self) -> Tensor:
        """Return what removing the input of each place costs, (r, w); of one that is removed a meaningless number."""
        return self.weight.square() / self.diagonal.maximum(self.least)

    def remove(self, p: Tensor, active: Tensor) -> None:
        """Remove the input of one place p (r,) of each row that is active (r,)."""
        known = self.vectors[:, : self.made]  # (r, made, w)
        column = self.shared[self.group, p] if self.own is None else self.own[self.rows, p]  # (r, w)
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
            self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        """Subtract the vectors from the inverse, and give up places once enough inputs are gone."""
        before = self.shared[self.group] if self.own is None else self.own
        known = self.vectors[:, : self.made]
        self.own, self.made = before.baddbmm_(known.mT, known, alpha=-1), 0
        width = max(1, int(self.kept.sum(1).max()))
        if width <= SHRUNK * self.kept.shape[1]:
            self._give_up_places(width)

    def _give_up_places(self, width: int) -> None:
        """Keep as many places as the row with most inputs needs."""
        assert self.own is not None  # it is up to date
        stay = torch.argsort(self.kept.to(torch.int8), dim=1, descending=True, stable=True)[:, :width]  # (r, width)
        smaller = self.own.new_empty(len(stay), width, width)
        for before, after, places in zip(self.own, smaller, stay, strict=True):
            torch.index_select(before.index_select(0, places), 1, places, out=after)
        self.own, self.vectors = smaller, self.vectors.new_empty(len(stay), LAZY, width)
        parts = (self.inputs, self.kept, self.weight, self.diagonal, self.least)
        self.inputs, self.kept, self.weight, self.diagonal, self.least = (part.gather(1, stay) for part in parts)


def _batches(damped: DampedGram, weight: Tensor, max_bytes: float) -> Iterator[tuple[slice, _Rows]]:
    """Yield as many rows at a time as have room."""
    rows, width = weight.shape
    size = weight.element_size() * width * (COPIES * width + LAZY)  # bytes of a row
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
            barred = ~may.gather(1, rows.inputs)
            cost = rows.costs().masked_fill(barred, -1.0).masked_fill(~rows.kept, torch.inf)
            costs[part, step], p = cost.min(1)
            order[part, step] = rows.inputs[rows.rows, p]
            rows.remove(p, active)
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
        may, kept = allowed[part], torch.ones_like(allowed[part])  # (r, d) both
        for _ in range(weight.shape[1]):
            crowded = (kept[:, groups].sum(2) > keep)[:, owner]  # (r, d)
            barred = ~may.gather(1, rows.inputs)
            possible = rows.kept & (crowded.gather(1, rows.inputs) | barred)
            cost, p = rows.costs().masked_fill(barred, -1.0).masked_fill(~possible, torch.inf).min(1)
            active = torch.isfinite(cost)
            if not bool(active.any()):
                break
            kept[rows.rows, rows.inputs[rows.rows, p]] &= ~active
            rows.remove(p, active)
        mask[part] = kept
    return mask
