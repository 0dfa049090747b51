"""Rows of a layer-wise problem whose kept inputs change by swaps: what they hold, and the gain of every swap.

Formulas and symbols stand at the top of :mod:`snows_core.solvers.swaps`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from snows_core.solvers.least_squares import grouped_product


class Rows(ABC):
    """Rows on their way: the swaps that were made, and what they gained.

    Args:
        h: (groups, d, d) damped Gram matrices; each is that of as many rows, one after the other.
        b: (r, d) right-hand sides.
        kept: (r, d) bool.
        count: groups, each of d / count inputs side by side.
    """

    def __init__(self, h: Tensor, b: Tensor, kept: Tensor, count: int) -> None:
        self.h, self.b, self.kept = h, b, kept.clone()
        self.count, self.size = count, kept.shape[1] // count
        self.rows = torch.arange(len(b), device=b.device)
        self.group = _group_of(h, b)

    def by_groups(self, values: Tensor) -> Tensor:
        """Return (r, d) as (r, count, m)."""
        return values.view(len(values), self.count, self.size)

    @abstractmethod
    def gains(self) -> Tensor:
        """Return the gain of every swap of an input j of a group for another one, p: (r, count, m, m)."""

    @abstractmethod
    def explained(self) -> Tensor:
        """Return b'w of each row, which its loss falls short of a constant by: (r,)."""

    @abstractmethod
    def swap(self, j: Tensor, p: Tensor, active: Tensor) -> None:
        """Take out j and add p, (r,) each, in the rows that are active."""


class RefittedRows(Rows):
    """Rows whose weights are fitted anew after each swap: ``T = T0 - V diag(q) V'`` up to its diagonal, and z."""

    def __init__(self, h: Tensor, b: Tensor, kept: Tensor, count: int) -> None:
        super().__init__(h, b, kept, count)
        self.start, self.z = _swept(h, b, kept)  # (r, d, d), (r, d)
        blocks = self.start.view(len(b), count, self.size, count, self.size)
        self.blocks = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()  # (r, count, m, m), up to date
        self.vectors = b.new_empty(len(b), 0, b.shape[1])  # V', (r, pivots, d)
        self.factors = b.new_empty(len(b), 0)  # q
        self.made = 0

    def gains(self) -> Tensor:
        """Return the gain of every swap after a fit, (r, count, m, m); what is no swap has a meaningless number."""
        diagonal = self.blocks.diagonal(dim1=2, dim2=3)  # (r, count, m)
        inverse, schur = -diagonal[..., :, None], diagonal[..., None, :]  # of a kept row j and a pruned column p
        z = self.by_groups(self.z)
        ratio = z[..., None, :] / schur  # g / schur
        left = z[..., :, None] - self.blocks * ratio  # w_j - u_j g / schur
        return z[..., None, :] * ratio - left.square() / (inverse + self.blocks.square() / schur)

    def explained(self) -> Tensor:
        """Return b'w of fitted weights, (r,), by a fresh factorisation once anything was swapped."""
        if not self.made:
            return torch.where(self.kept, self.b * self.z, 0.0).sum(1)
        return _fitted_value(self.h, self.b, self.kept)

    def swap(self, j: Tensor, p: Tensor, active: Tensor) -> None:
        """Take out j and add p, (r,) each, in the rows that are active."""
        pair = torch.stack([p, j], 1)  # (r, 2)
        columns = self.start[self.rows[:, None], pair]  # (r, 2, d), copies
        if self.made:
            known = self.vectors[:, : self.made]  # (r, pivots, d)
            weights = known.gather(2, pair[:, None].expand(-1, self.made, -1)) * self.factors[:, : self.made, None]
            columns = torch.baddbmm(columns, weights.mT, known, alpha=-1)
        first, second = columns.unbind(1)
        factor = self._pivot(p, 1.0, first, active)
        second = second - first * (factor * first[self.rows, j])[:, None]
        self._pivot(j, -1.0, second, active)

    def _pivot(self, k: Tensor, sign: float, v: Tensor, active: Tensor) -> Tensor:
        """Take inputs into the kept ones (sign 1), or out of them (sign -1), in the rows that are active.

        With the column c of k and d = c_k the change is ``T - v v' / d``, v being c but for ``v_k = d - sign``, and
        ``- 2 sign`` at its place on the diagonal; z changes by ``- v z_k / d``.

        Args:
            k: (r,) an input of each row.
            sign: which way.
            v: (r, d) its columns of T; becomes the v of the formula.
            active: (r,) bool; other rows do not change.

        Returns:
            1 / d of each row, 0 where it is not active.
        """
        group, place = k // self.size, k % self.size
        pivot = self.blocks[self.rows, group, place, place]
        v[self.rows, k] = pivot - sign
        factor = active.to(v.dtype) / pivot
        self.z -= v * (factor * self.z[self.rows, k])[:, None]
        parts = self.by_groups(v)
        self.blocks -= parts[..., :, None] * (factor[:, None, None] * parts)[..., None, :]
        self.blocks[self.rows, group, place, place] -= 2 * sign * active
        self.kept[self.rows, k] = torch.where(active, sign > 0, self.kept[self.rows, k])
        self._remember(v, factor)
        return factor

    def _remember(self, v: Tensor, factor: Tensor) -> None:
        if self.made == self.vectors.shape[1]:  # room for half as many again
            more = max(16, self.made // 2)
            self.vectors = torch.cat([self.vectors, v.new_empty(len(v), more, v.shape[1])], 1)
            self.factors = torch.cat([self.factors, v.new_empty(len(v), more)], 1)
        self.vectors[:, self.made], self.factors[:, self.made] = v, factor
        self.made += 1


class FixedRows(Rows):
    """Rows whose other weights stay as they are at a swap: the residual ``r = b - H w`` tells every gain."""

    def __init__(self, h: Tensor, b: Tensor, kept: Tensor, count: int, weight: Tensor) -> None:
        super().__init__(h, b, kept, count)
        self.weight = weight.to(b.dtype).clone()  # (r, d)
        self.residual = b - grouped_product(h, self.weight)
        blocks = h.view(len(h), count, self.size, count, self.size).diagonal(dim1=1, dim2=3)
        self.blocks = blocks.permute(0, 3, 1, 2)[self.group]  # (r, count, m, m)
        self.diagonal = self.blocks.diagonal(dim1=2, dim2=3)  # (r, count, m)

    def gains(self) -> Tensor:
        """Return the gain of every swap at fixed other weights, (r, count, m, m); see :class:`RefittedRows`."""
        w, r = self.by_groups(self.weight), self.by_groups(self.residual)
        added = (r[..., None, :] + self.blocks * w[..., :, None]).square() / self.diagonal[..., None, :]
        return added - (self.diagonal * w.square() + 2 * w * r)[..., :, None]

    def explained(self) -> Tensor:
        """Return ``2 b'w - w'Hw`` of each row, which is b'w where w is fitted: (r,)."""
        return (self.weight * (self.b + self.residual)).sum(1)

    def swap(self, j: Tensor, p: Tensor, active: Tensor) -> None:
        """Take out j and add p at its best weight, (r,) each, in the rows that are active."""
        self._change(j, torch.where(active, -self.weight[self.rows, j], 0.0))
        step = self.residual[self.rows, p] / self.h[self.group, p, p]
        self._change(p, torch.where(active, step, 0.0))
        self.kept[self.rows, j] = self.kept[self.rows, j] & ~active
        self.kept[self.rows, p] = self.kept[self.rows, p] | active

    def _change(self, k: Tensor, amount: Tensor) -> None:
        self.weight[self.rows, k] += amount
        self.residual -= self.h[self.group, k] * amount[:, None]


def _group_of(h: Tensor, b: Tensor) -> Tensor:
    """Return which matrix is that of each row, (r,)."""
    return torch.arange(len(b), device=b.device) // (len(b) // len(h))


def _places(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the marked inputs of each row (r, width), and where a row has fewer than the others, of any it has."""
    width = max(1, int(marked.sum(1).max()))
    places = torch.argsort(marked.to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
    return places, ~marked.gather(1, places)


def _factored(h: Tensor, support: Tensor, padding: Tensor) -> Tensor:
    """Return lower Cholesky factors of H_SS (r, w, w); padded places are decoupled from the others."""
    group = _group_of(h, support)[:, None, None]
    matrix = h[group, support[:, :, None], support[:, None, :]].masked_fill_(
        padding[:, :, None] | padding[:, None, :], 0.0
    )
    matrix.diagonal(dim1=1, dim2=2).add_(padding)
    lower: Tensor = torch.linalg.cholesky_ex(matrix).L
    return lower


def _fitted_value(h: Tensor, b: Tensor, kept: Tensor) -> Tensor:
    """Return ``b_S' M b_S`` of each row (r,)."""
    support, padding = _places(kept)
    own = b.gather(1, support).masked_fill(padding, 0.0)
    half: Tensor = torch.linalg.solve_triangular(_factored(h, support, padding), own[..., None], upper=False)
    return half.square().sum((1, 2))


def _swept(h: Tensor, b: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return T (r, d, d) and z (r, d) of rows."""
    (s, no_s), (p, no_p) = _places(kept), _places(~kept)  # (r, w) and (r, v) each
    lower = _factored(h, s, no_s)
    group = _group_of(h, b)[:, None, None]
    across = h[group, s[:, :, None], p[:, None, :]].masked_fill_(no_s[:, :, None] | no_p[:, None, :], 0.0)  # H_SP
    own = b.gather(1, s).masked_fill(no_s, 0.0)
    half = torch.linalg.solve_triangular(lower, torch.cat([across, own[..., None]], 2), upper=False)  # (r, w, v + 1)
    solved = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    schur = torch.baddbmm(h[group, p[:, :, None], p[:, None, :]], half[..., :-1].mT, half[..., :-1], alpha=-1)
    schur.masked_fill_(no_p[:, :, None] | no_p[:, None, :], 0.0)
    inverse = torch.cholesky_inverse(lower).masked_fill_(no_s[:, :, None] | no_s[:, None, :], 0.0)
    d, z = b.shape[1], torch.zeros_like(b)
    swept = b.new_zeros(len(b), d * d)
    blocks = ((s, s, -inverse), (s, p, solved[..., :-1]), (p, s, solved[..., :-1].mT), (p, p, schur))
    for left, right, block in blocks:  # what is padded adds zeros
        swept.scatter_add_(1, (left[:, :, None] * d + right[:, None, :]).flatten(1), block.flatten(1))
    z.scatter_add_(1, s, solved[..., -1])
    g = b.gather(1, p) - (solved[:, None, :, -1] @ across)[:, 0]
    return swept.view(-1, d, d), z.scatter_add_(1, p, g.masked_fill(no_p, 0.0))
