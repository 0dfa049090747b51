"""The quadratic of layer-wise least squares on all inputs: its matrix, factored and inverted once a group of rows.

With the symbols of :mod:`snows_core.solvers.least_squares`, a row's loss is, up to a constant::

    (w - w*) H (w - w*)',    H = A + damping I,    w* = (X y0' + damping w0) H^-1

Where the layer's input is the dense network's own, ``X y0' = w0 A`` and ``w* = w0``. Where layers before it have
changed its input, the dense weight minimises nothing, and w* is the weight that repeats the dense output best from
the new one. The optimal brain surgeon expands a loss around its minimum, so that is where methods of its kind begin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.solvers.least_squares import grouped_product
from snows_core.solvers.row_factors import absolute_damping, damped_cholesky


@dataclass(frozen=True)
class DampedGram:
    """``H = A + damping I`` of every group, in the widest number format of the device.

    Attributes:
        matrix: (groups, d, d) H; group g serves rows g * out / groups and on.
        lower: (groups, d, d) its lower Cholesky factors.
        damping: what was added to the diagonal.
    """

    matrix: Tensor
    lower: Tensor
    damping: float

    def inverse(self) -> Tensor:
        """Return ``H^-1``, (groups, d, d)."""
        return torch.cholesky_inverse(self.lower)

    def group_of(self, rows: int) -> Tensor:
        """Return the group of each of ``rows`` rows, (rows,)."""
        return torch.arange(rows, device=self.matrix.device) // (rows // len(self.matrix))

    def right_side(self, dense: Tensor, response: Tensor | None = None) -> Tensor:
        """Return ``X y0' + damping w0``, which is ``w* H``.

        Args:
            dense: (out, d) dense weight rows w0.
            response: (out, d) rows ``X y0'``; default: dense inputs equal inputs.

        Returns:
            (out, d) in the format of the matrix.
        """
        rows = dense.to(self.matrix.dtype)
        if response is None:
            return grouped_product(self.matrix, rows)
        return response.to(self.matrix.dtype) + self.damping * rows

    def minimiser(self, dense: Tensor, response: Tensor | None = None) -> Tensor:
        """Return w*.

        Args:
            dense: (out, d) dense weight rows w0.
            response: (out, d) rows ``X y0'``; default: dense inputs equal inputs, and w* is w0.

        Returns:
            (out, d) in the format of the matrix.
        """
        if response is None:
            return dense.to(self.matrix.dtype)
        right = self.right_side(dense, response).view(len(self.matrix), -1, dense.shape[1])
        return torch.cholesky_solve(right.mT, self.lower).mT.reshape(dense.shape)


def damped_gram(gram: Tensor, damping: float) -> DampedGram:
    """Damp and factor Gram matrices.

    Args:
        gram: (groups, d, d).
        damping: relative to the mean of their diagonal, as in :class:`~snows_core.solvers.row_factors.RowFactors`;
            inputs
            that are always zero so stand on the diagonal with the damping alone.

    Returns:
        The damped matrices; not finite where ``gram`` is not.

    >>> damped_gram(torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]), 2.0).matrix.tolist()
    [[[6.0, 0.0], [0.0, 3.0]]]
    """
    matrix = gram.to(widest(gram.device), copy=True)
    added = absolute_damping(gram, damping)
    return DampedGram(matrix, damped_cholesky(matrix, added), added)
