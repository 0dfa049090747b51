"""Swaps of kept for pruned inputs inside groups, each with the exact gain of the layer-wise loss after a re-fit.

Of a row with ``H = A + damping I`` and ``b = C w0 + damping w0`` (symbols of :mod:`snows_core.solvers.least_squares`)
the best weights on the kept inputs S leave the loss ``const - b_S' M b_S`` with ``M = H_SS^-1``. For a kept input j and
a pruned one p let ``w = M b_S``, ``u = M H_Sp``, ``g = b_p - H_pS w`` and ``schur = H_pp - H_pS u``. Adding p gains
``g^2 / schur``; taking out j costs its weight squared over its place in the inverse (Hassibi & Stork 1993), both as
they are after the addition, which the block inverse formula tells::

    gain(j -> p) = g^2 / schur - (w_j - u_j g / schur)^2 / (M_jj + u_j^2 / schur)

All of these numbers stand in one symmetric matrix, the sweep of H on S (Goodnight 1979), and in a vector::

    T = [[-M, M H_SP], [H_PS M, H_PP - H_PS M H_SP]],   z = (w_S, g_P)

An input comes in or goes out by a rank-one change of them. So a row takes the best swap of all its groups, sees all
gains anew, and goes on; the loss falls with every swap by exactly its gain.

Of layers too wide for T, swaps hold the other weights of the row fixed, as those of SparseSwaps (2025) do. With the
residual ``r = b - H w`` a swap then gains ``(r_p + H_pj w_j)^2 / H_pp - H_jj w_j^2 - 2 w_j r_j``: the diagonal of H and
the groups' own blocks are enough. The gain after a re-fit is at least that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snows_core.devices import factor_bytes, widest
from snows_core.solvers.least_squares import grouped_product, masked_least_squares
from snows_core.solvers.row_factors import ROOM, ROOM_HOST, RowFactors
from snows_core.solvers.swapped_rows import FixedRows, RefittedRows, Rows

WIDEST = 2304  # inputs up to which T is made, of 42 MB a row then
COPIES = 6  # tensors of the size of a row's T (of wider layers: of its groups' blocks) in memory at a time
NEGLIGIBLE = 1e-6  # a gain below this share of what the kept inputs explain (b'w) ends a row


@dataclass(frozen=True)
class Swapped:
    """What swaps have led to.

    Attributes:
        mask: (out, d) bool, as many True in every group as before.
        gain: (out,) by how much the loss of each row fell; of layers too wide for exact gains at least that.
        swaps: (out,) how many were made.
    """

    mask: Tensor
    gain: Tensor
    swaps: Tensor


@torch.no_grad()
def swap_inputs(
    gram: Tensor,
    mask: Tensor,
    dense: Tensor,
    groups: Tensor,
    *,
    response: Tensor | None = None,
    allowed: Tensor | None = None,
    damping: float = 1e-4,
    max_bytes: float = math.inf,
) -> Swapped:
    """Swap kept for pruned inputs of the same group while that lowers the layer-wise loss, each row for itself.

    The loss of a row never rises: where a fresh fit does not confirm what was gained, the row keeps its mask. Rows are
    taken in batches, so that memory is bounded by a few matrices of d x d.

    Args:
        gram: (gram groups, d, d) Gram matrices A; group g serves rows g * out / groups and on.
        mask: (out, d) bool, where each row begins.
        dense: (out, d) dense weight rows w0.
        groups: (count, m) inputs of each group of the pattern; every input stands in one.
        response: (out, d) rows ``X y0'``; default: the Gram matrix times ``dense``.
        allowed: (out, d) bool, inputs that may be kept; default all.
        damping: relative to the mean of the Gram diagonal, as in :class:`RowFactors`.
        max_bytes: bound for rows that are on their way together; one row always has room.

    Returns:
        The new mask, and what was gained.
    """
    order = groups.flatten().to(dense.device)  # (d,): the inputs of a group lie side by side from here on
    kept, count, size = mask[:, order], *groups.shape
    may = torch.ones_like(kept) if allowed is None else allowed[:, order]
    fitted = None
    if len(order) > WIDEST:
        factors = RowFactors(gram, mask, damping, max_bytes=factor_bytes(dense.device))
        fitted = masked_least_squares(factors, dense, response=response)[:, order]
    parts = []
    elements = len(order) * (len(order) if fitted is None else 2 * size)  # of a row
    room = min(max_bytes, ROOM.get(dense.device.type, ROOM_HOST))
    step = max(1, int(room // (8 * COPIES * elements)))
    for rows, h, b in _batches(gram, dense, response, damping, order, step):
        state = (
            RefittedRows(h, b, kept[rows], count)
            if fitted is None
            else FixedRows(h, b, kept[rows], count, fitted[rows])
        )
        parts.append(_improved(state, may[rows].view(len(b), count, size)))
    new, gain, swaps = (torch.cat(part) for part in zip(*parts, strict=True))
    return Swapped(new[:, torch.argsort(order)], gain, swaps)


def _batches(
    gram: Tensor, dense: Tensor, response: Tensor | None, damping: float, order: Tensor, step: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows, H (groups, d, d) and b (rows, d), inputs in the given order, as many rows as have room.

    The rows are those of several groups, as many of each, or some of one.

    Args:
        gram: Gram matrices.
        dense: dense weight rows.
        response: rows of the right-hand side, or None.
        damping: relative.
        order: (d,) inputs in the order wanted.
        step: rows that have room.
    """
    precise, share = widest(dense.device), len(dense) // len(gram)
    mean = float(gram.diagonal(dim1=-2, dim2=-1).mean())
    shift = damping * mean if mean > 0 else 1.0
    several = max(1, step // share)  # groups whose rows all have room
    for first in range(0, len(gram), several):
        own = gram[first : first + several].to(precise)  # (some groups, d, d)
        of_groups = slice(first * share, (first + len(own)) * share)
        weight = dense[of_groups].to(precise)
        right = grouped_product(own, weight) if response is None else response[of_groups].to(precise)
        right = (right + shift * weight)[:, order]
        h = own[:, order[:, None], order]
        h.diagonal(dim1=1, dim2=2).add_(shift)
        start = of_groups.start
        size = len(right) if len(own) > 1 else step
        for begin in range(0, len(right), size):
            b = right[begin : begin + size]
            yield slice(start + begin, start + begin + len(b)), h, b


def _improved(state: Rows, may: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Swap in every row until nothing gains, at most half as often as there are inputs.

    Args:
        state: the rows.
        may: (r, count, m) bool, inputs that may be kept.

    Returns:
        Kept inputs (r, d), what each row gained (r,), and the number of its swaps (r,).
    """
    begun, before, size = state.kept.clone(), state.explained(), state.size
    swaps = torch.zeros_like(state.rows)
    least = NEGLIGIBLE * before.abs()
    active = torch.ones_like(begun[:, 0])
    for _ in range(max(1, begun.shape[1] // 2)):
        kept = state.by_groups(state.kept)
        possible = kept[..., :, None] & (may & ~kept)[..., None, :]  # (r, count, m, m)
        gain, where = state.gains().masked_fill(~possible, -torch.inf).flatten(1).max(1)
        active = active & (gain > least)
        if not bool(active.any()):
            break
        group, pair = where // size**2, where % size**2
        state.swap(group * size + pair // size, group * size + pair % size, active)
        swaps += active
    gained = state.explained() - before
    confirmed = gained > 0  # False for numbers that overflowed, too
    kept = torch.where(confirmed[:, None], state.kept, begun)
    return kept, torch.where(confirmed, gained, 0.0), torch.where(confirmed, swaps, 0)
