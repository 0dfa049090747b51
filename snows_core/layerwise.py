"""Layer-wise least squares (K = 0): Gram matrices, masked row-wise factors, and the ridge solution on a mask.

For a layer with weight rows ``w_i`` (out of them), inputs ``X`` (one column per image and position) and dense inputs
``X0``, the K = 0 problem is, row by row on the kept set ``S_i``::

    minimise || w_i X - w0_i X0 ||^2 + damping || w_i - w0_i ||^2
    so that  (A_SS + damping I) w_S = (C w0 + damping w0)_S

with the Gram matrix ``A = X X'`` and the cross Gram matrix ``C = X X0'``, of which only the products ``C w0 = X y0'``
with the dense outputs ``y0 = w0 X0`` (without bias) are needed. Every row has its own support, hence its own
Cholesky factor; the same factors precondition the K-step Newton system. (L-OBS, Net-Trim, OBC, SparseGPT and ALPS stop
at K = 0; the mask has to be inside the factor, see the benchmarks.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from snows_core.geometry import Geometry, columns_of, geometry_of, patches
from snows_core.precision import widest
from snows_core.shelf import Shelved

__all__ = [
    "Geometry",
    "RowFactors",
    "full_factor_bytes",
    "geometry_of",
    "gram",
    "masked_least_squares",
    "normal_equations",
    "patches",
]

PIECE = 3.2e7  # bytes of a layer's input that are laid out as a matrix at a time
LONG = 256  # positions of an image from which on it is worth a matrix product of its own, without a copy
# Bytes of the matrices that are factored together; a host gains nothing by more.
ROOM = {"cuda": 2.5e8}
ROOM_HOST = 3.2e7


def gram(left: Tensor, right: Tensor | None = None) -> Tensor:
    """Return ``left' right`` per group, (groups, d, d), for patch matrices (groups, rows, d)."""
    return left.transpose(1, 2) @ (left if right is None else right)


@torch.no_grad()
def normal_equations(
    inputs: Iterable[tuple[Tensor, Tensor | None]], geometry: Geometry, outputs: int
) -> tuple[Tensor, Tensor | None]:
    """Sum what layer-wise least squares needs over batches, a few images at a time.

    Args:
        inputs: per batch the layer's input x, (N, C, H, W) or (..., in), and the dense network's output without bias
            on its own input, y0 (N, out, H', W') or (..., out), or None where the input is the dense one.
        geometry: how the layer reads its input.
        outputs: number of output channels.

    Returns:
        Gram matrix A (groups, d, d), and ``X y0'`` as rows (out, d), or None without y0.
    """
    own: Tensor | None = None
    response: Tensor | None = None
    for x, y0 in inputs:
        for columns, right in _pieces(x, y0, geometry, outputs):
            if own is None:
                own = columns.new_zeros(len(columns), columns.shape[1], columns.shape[1])
                response = None if right is None else columns.new_zeros(len(columns), right.shape[1], columns.shape[1])
            own.baddbmm_(columns, columns.mT)
            if right is not None:
                response.baddbmm_(right, columns.mT)
    return own, None if response is None else response.reshape(outputs, -1)


def _pieces(
    x: Tensor, y0: Tensor | None, geometry: Geometry, outputs: int
) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Yield inputs (groups, d, columns) and dense outputs (groups, out / groups, columns), piece by piece."""
    if geometry.kernel is None:
        yield x.reshape(1, -1, x.shape[-1]).mT, None if y0 is None else y0.reshape(1, -1, y0.shape[-1]).mT
        return
    width = x.shape[1] * geometry.kernel[0] * geometry.kernel[1]
    positions = x[0, 0].numel() if y0 is None else y0[0, 0].numel()
    step = max(1, int(PIECE / (width * positions * x.element_size())))
    for start in range(0, len(x), step):
        columns = columns_of(x[start : start + step], geometry)
        right = None if y0 is None else y0[start : start + step].reshape(len(columns), geometry.groups, -1, positions)
        if columns.shape[-1] >= LONG:
            yield from zip(columns, [None] * len(columns) if right is None else right, strict=True)
        else:
            yield _side_by_side(columns), None if right is None else _side_by_side(right)


def _side_by_side(columns: Tensor) -> Tensor:
    """Turn (N, groups, d, positions) into (groups, d, N * positions)."""
    return columns.permute(1, 2, 0, 3).flatten(2)


def full_factor_bytes(mask: Tensor, like: Tensor) -> float:
    """Return what the factors of every row take in one block: ``mask`` (out, d), numbers of the type of ``like``."""
    kept = int(mask.sum(1).max())
    return float(mask.shape[0] * kept * kept * like.element_size())


class RowFactors:
    """Cholesky factors of ``scale_i (A_SS + damping I)`` for every output row i, on that row's kept inputs S_i.

    Rows of about equal support are factored together in batches. Where full factors would take more than
    ``max_bytes``, inputs are cut into blocks and only the diagonal blocks are kept (still exact within a block).

    Args:
        gram: (groups, d, d) Gram matrices of the layer's input; group g serves rows g * out/groups and on.
        mask: (out, d) bool, True where a weight is kept.
        damping: relative to the mean of the Gram diagonal; an all-zero Gram matrix is damped by 1.
        scale: (out,) positive curvature of each output row, default 1.
        max_bytes: upper bound for the stored factors.
        on_disk: let them rest in files, read one by one in each solve.

    Attributes:
        block: inputs per block; d when factors are full.
    """

    def __init__(
        self,
        gram: Tensor,
        mask: Tensor,
        damping: float = 1e-4,
        scale: Tensor | None = None,
        max_bytes: float = 2e9,
        on_disk: bool = False,
    ) -> None:
        self.on_disk = on_disk
        self.shape = mask.shape
        self.gram = gram
        self.mask = mask
        self.scale = scale
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        mean = float(diagonal.mean())
        self.damping = damping * mean if mean > 0 else 1.0
        self.block = self._block_size(max_bytes)
        self.parts: list[tuple[Tensor, Tensor, Tensor | Shelved]] = []
        for start in range(0, mask.shape[1], self.block):
            self._factor_block(start, min(start + self.block, mask.shape[1]))

    def _block_size(self, max_bytes: float) -> int:
        block, bytes_ = self.mask.shape[1], full_factor_bytes(self.mask, self.gram)
        while block > 16 and bytes_ > max_bytes:
            block, bytes_ = -(-block // 2), bytes_ / 2  # twice the blocks, each a quarter
        return block

    def _factor_block(self, start: int, stop: int) -> None:
        mask = self.mask[:, start:stop]
        counts = mask.sum(1)
        order = torch.argsort(counts, descending=True)
        order = order[counts[order] > 0]
        while len(order):
            width = int(counts[order[0]])
            room = max(1, int(ROOM.get(self.gram.device.type, ROOM_HOST) // (8 * width * width)))
            # A row that keeps far fewer inputs would waste work in this batch: it waits for the next one.
            fitting = int((counts[order[:room]] > 0.7 * width).sum())
            rows, order = order[: max(1, fitting)], order[max(1, fitting) :]
            support = torch.argsort(mask[rows].to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
            padding = ~mask[rows].gather(1, support)
            factor = self._factor(rows, support + start, padding)
            self.parts.append((rows, support + start, Shelved(factor) if self.on_disk else factor))

    def _factor(self, rows: Tensor, support: Tensor, padding: Tensor) -> Tensor:
        """Return lower Cholesky factors (rows, width, width); padded places are decoupled from the others."""
        precise = widest(self.gram.device)
        group = rows // (self.shape[0] // self.gram.shape[0])
        matrix = self.gram[group[:, None, None], support[:, :, None], support[:, None, :]].to(precise)
        if bool(padding.any()):
            matrix.masked_fill_(padding[:, :, None] | padding[:, None, :], 0.0)
        damping = self.damping
        for _ in range(12):
            matrix.diagonal(dim1=-2, dim2=-1).add_(damping)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not bool(failed.any()):
                break
            damping = max(
                10 * damping, 1e-12 * float(matrix.diagonal(dim1=-2, dim2=-1).max())
            )  # rounding made the matrix indefinite: damp until it factors
        return factor.to(self.gram.dtype)

    def solve(self, rhs: Tensor) -> Tensor:
        """Apply the inverse of the (block-diagonal) row-wise matrices to ``rhs`` (out, d); zero off the mask."""
        result = torch.zeros_like(rhs)
        for rows, support, kept in self.parts:
            factor = kept.load(rhs.device) if isinstance(kept, Shelved) else kept
            part = rhs[rows[:, None], support].to(factor.dtype)
            # Two triangular solves: on a CPU three times as fast as torch.cholesky_solve on a batch.
            half = torch.linalg.solve_triangular(factor, part.unsqueeze(-1), upper=False)
            solved = torch.linalg.solve_triangular(factor.mT, half, upper=True)
            result[rows[:, None], support] = solved.squeeze(-1).to(rhs.dtype)
        result = torch.where(self.mask, result, 0.0)
        return result if self.scale is None else result / self.scale[:, None]


def masked_least_squares(
    factors: RowFactors,
    dense: Tensor,
    cross: Tensor | None = None,
    *,
    response: Tensor | None = None,
    iterations: int = 50,
    tolerance: float = 1e-5,
) -> Tensor:
    """Solve the K = 0 problem on the mask (formula at the top of this file).

    Args:
        factors: row factors without ``scale``; they hold Gram matrix, mask and damping.
        dense: (out, d) dense weight rows w0.
        cross: (groups, d, d) cross Gram matrix C; default: the Gram matrix itself (dense inputs equal inputs).
        response: (out, d) rows ``X y0'`` of :func:`normal_equations`, in place of ``cross``.
        iterations: cap on conjugate-gradient iterations; full factors need one or two, blocks a few more.
        tolerance: relative residual at which a solve ends.

    Returns:
        (out, d) rows, zero off the mask.
    """
    mask, damping = factors.mask, factors.damping

    def times(matrix: Tensor, rows: Tensor) -> Tensor:
        grouped = rows.view(matrix.shape[0], -1, rows.shape[1])
        return (grouped @ matrix.transpose(1, 2)).reshape(rows.shape)

    if response is None:
        response = times(factors.gram if cross is None else cross, dense)
    rhs = torch.where(mask, response + damping * dense, 0.0)
    x = factors.solve(rhs)
    residual = rhs - torch.where(mask, times(factors.gram, x) + damping * x, 0.0)
    target = tolerance * float(rhs.norm())
    z = factors.solve(residual)
    p, rz = z, (residual * z).sum(1, keepdim=True)
    for _ in range(iterations):
        if float(residual.norm()) <= target:
            break
        product = torch.where(mask, times(factors.gram, p) + damping * p, 0.0)
        curvature = (p * product).sum(1, keepdim=True)
        alpha = torch.where(curvature > 0, rz / curvature, 0.0)
        x, residual = x + alpha * p, residual - alpha * product
        z = factors.solve(residual)
        new = (residual * z).sum(1, keepdim=True)
        p, rz = z + torch.where(rz > 0, new / rz, 0.0) * p, new
    return x
