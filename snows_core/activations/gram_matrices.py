"""Gram matrices of a layer's input, accumulated over batches: what every layer-wise method begins with.

For inputs ``X`` (one column per image and position) and the dense network's outputs without bias ``y0 = w0 X0``::

    A = X X'  (groups, d, d),    X y0'  as rows (out, d)

The input is laid out as a matrix a few images at a time, so that it never lies there whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from snows_core.network.geometry import Geometry, columns_of

PIECE = 3.2e7  # bytes of a layer's input that are laid out as a matrix at a time
LONG = 256  # positions of an image from which on it is worth a matrix product of its own, without a copy


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
    own: Tensor | None = None  # (groups, d, d)
    response: Tensor | None = None  # (groups, out / groups, d)
    for x, y0 in inputs:
        for columns, right in _pieces(x, y0, geometry, outputs):
            if own is None:
                own = columns.new_zeros(len(columns), columns.shape[1], columns.shape[1])
                response = None if right is None else columns.new_zeros(len(columns), right.shape[1], columns.shape[1])
            own.baddbmm_(columns, columns.mT)
            if right is not None and response is not None:
                response.baddbmm_(right, columns.mT)
    assert own is not None, "there is a batch"
    return own, None if response is None else response.reshape(outputs, -1)


def _pieces(x: Tensor, y0: Tensor | None, geometry: Geometry, outputs: int) -> Iterable[tuple[Tensor, Tensor | None]]:
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
