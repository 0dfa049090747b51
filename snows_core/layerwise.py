"""Layer-wise least squares (K = 0): Gram matrices, masked row-wise factors, and the ridge solution on a mask.

For a layer with weight rows ``w_i`` (out of them), inputs ``X`` (one column per image and position) and dense inputs
``X0``, the K = 0 problem is, row by row on the kept set ``S_i``::

    minimise || w_i X - w0_i X0 ||^2 + damping || w_i - w0_i ||^2
    so that  (A_SS + damping I) w_S = (C w0 + damping w0)_S

with the Gram matrix ``A = X X'`` and the cross Gram matrix ``C = X X0'``. Every row has its own support, hence its own
Cholesky factor; the same factors precondition the K-step Newton system. (L-OBS, Net-Trim, OBC, SparseGPT and ALPS stop
at K = 0; the mask has to be inside the factor, see the benchmarks.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.operations import module_of


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    Attributes:
        kernel: (height, width) of the convolution, or None for a linear layer.
        stride: (vertical, horizontal) step.
        padding: explicit zero padding (vertical, horizontal), or "same"/"valid", or "timm-same" (dynamic).
        dilation: (vertical, horizontal) spacing.
        groups: number of channel groups.
        padding_mode: as in ``nn.Conv2d``.
    """

    kernel: tuple[int, int] | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"


def geometry_of(node: fx.Node, weight: Tensor) -> Geometry:
    """Read a layer's geometry from its module or its function call; ``weight`` is (out, in, ...)."""
    if weight.ndim == 2:
        return Geometry(None)
    kernel = (int(weight.shape[-2]), int(weight.shape[-1]))
    module = module_of(node)
    if isinstance(module, nn.Conv2d):
        padding = "timm-same" if isinstance(module, Conv2dSame) else module.padding
        return Geometry(kernel, module.stride, padding, module.dilation, module.groups, module.padding_mode)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}

    def pair(name: str, default: int) -> tuple[int, int]:
        value = given.get(name, default)
        return (value, value) if isinstance(value, int) else tuple(value)

    padding = given.get("padding", 0)
    padding = padding if isinstance(padding, str) else pair("padding", 0)
    return Geometry(kernel, pair("stride", 1), padding, pair("dilation", 1), int(given.get("groups", 1)))


def patches(x: Tensor, geometry: Geometry) -> Tensor:
    """Lay out a layer's input as a matrix with one row per image and position.

    Args:
        x: (N, C, H, W) for a convolution, (..., in) for a linear layer.
        geometry: how the layer reads it.

    Returns:
        (groups, rows, in / groups * kernel elements), columns in the order of ``weight.flatten(1)``.
    """
    if geometry.kernel is None:
        return x.reshape(1, -1, x.shape[-1])
    padding = geometry.padding
    if padding == "timm-same":
        x, padding = pad_same(x, geometry.kernel, geometry.stride, geometry.dilation), (0, 0)
    elif padding == "valid":
        padding = (0, 0)
    elif padding == "same" or geometry.padding_mode != "zeros":
        sides: list[int] = []
        for axis in (1, 0):
            total = geometry.dilation[axis] * (geometry.kernel[axis] - 1)
            sides += [total // 2, total - total // 2] if padding == "same" else [padding[axis]] * 2
        x = F.pad(x, sides, mode="constant" if geometry.padding_mode == "zeros" else geometry.padding_mode)
        padding = (0, 0)
    if geometry.kernel == (1, 1) and padding == (0, 0):
        columns = x[:, :, :: geometry.stride[0], :: geometry.stride[1]].flatten(2)
    else:
        columns = F.unfold(x, geometry.kernel, geometry.dilation, padding, geometry.stride)
    n, _, positions = columns.shape
    columns = columns.view(n, geometry.groups, -1, positions)
    return columns.permute(1, 0, 3, 2).reshape(geometry.groups, n * positions, -1)


def gram(left: Tensor, right: Tensor | None = None) -> Tensor:
    """Return ``left' right`` per group, (groups, d, d), for patch matrices (groups, rows, d)."""
    return left.transpose(1, 2) @ (left if right is None else right)


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
    ) -> None:
        self.shape = mask.shape
        self.gram = gram
        self.mask = mask
        self.scale = scale
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        mean = float(diagonal.mean())
        self.damping = damping * mean if mean > 0 else 1.0
        self.block = self._block_size(max_bytes)
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
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
            room = max(1, int(2.5e8 // (8 * width * width)))
            # A row that keeps far fewer inputs would waste work in this batch: it waits for the next one.
            fitting = int((counts[order[:room]] > 0.7 * width).sum())
            rows, order = order[: max(1, fitting)], order[max(1, fitting) :]
            support = torch.argsort(mask[rows].to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
            padding = ~mask[rows].gather(1, support)
            self.parts.append((rows, support + start, self._factor(rows, support + start, padding)))

    def _factor(self, rows: Tensor, support: Tensor, padding: Tensor) -> Tensor:
        """Return lower Cholesky factors (rows, width, width); padded places are decoupled from the others."""
        precise = torch.float64 if self.gram.device.type != "mps" else self.gram.dtype
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
        for rows, support, factor in self.parts:
            part = rhs[rows[:, None], support].to(factor.dtype)
            # Two triangular solves: on a CPU three times as fast as torch.cholesky_solve on a batch.
            half = torch.linalg.solve_triangular(factor, part.unsqueeze(-1), upper=False)
            solved = torch.linalg.solve_triangular(factor.mT, half, upper=True)
            result[rows[:, None], support] = solved.squeeze(-1).to(rhs.dtype)
        result = torch.where(self.mask, result, 0.0)
        return result if self.scale is None else result / self.scale[:, None]


def masked_least_squares(
    factors: RowFactors, dense: Tensor, cross: Tensor | None = None, *, iterations: int = 50, tolerance: float = 1e-5
) -> Tensor:
    """Solve the K = 0 problem on the mask (formula at the top of this file).

    Args:
        factors: row factors without ``scale``; they hold Gram matrix, mask and damping.
        dense: (out, d) dense weight rows w0.
        cross: (groups, d, d) cross Gram matrix C; default: the Gram matrix itself (dense inputs equal inputs).
        iterations: cap on conjugate-gradient iterations; full factors need one or two, blocks a few more.
        tolerance: relative residual at which a solve ends.

    Returns:
        (out, d) rows, zero off the mask.
    """
    mask, damping = factors.mask, factors.damping

    def times(matrix: Tensor, rows: Tensor) -> Tensor:
        grouped = rows.view(matrix.shape[0], -1, rows.shape[1])
        return (grouped @ matrix.transpose(1, 2)).reshape(rows.shape)

    rhs = torch.where(mask, times(factors.gram if cross is None else cross, dense) + damping * dense, 0.0)
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
