"""Cholesky factors of a layer's Gram matrix, row by row on the kept weights: they solve, and they precondition.

Every output row has its own support, hence its own factor (the mask has to be inside it, see the benchmarks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.distributed import ALONE, Processes

# Bytes of the matrices that are factored together; a host gains nothing by more.
ROOM = {"cuda": 2.5e8}
ROOM_HOST = 3.2e7
TRIES = 12  # each with ten times the damping: twelve orders of magnitude
WIDE = 4e6  # bytes of a layer's factors, from which on a share of its rows for each process is worth an exchange


class Resting(Protocol):
    """A tensor that rests elsewhere until it is read."""

    def load(self, device: torch.device | str) -> Tensor:
        """Return the tensor on a device."""


def full_factor_bytes(mask: Tensor, like: Tensor) -> float:
    """Return what the factors of every row take in one block: ``mask`` (out, d), numbers of the type of ``like``."""
    kept = int(mask.sum(1).max())
    return float(mask.shape[0] * kept * kept * like.element_size())


def absolute_damping(gram: Tensor, damping: float) -> float:
    """Return a damping relative to the mean diagonal of Gram matrices as a number; 1 where they are zero."""
    mean = float(gram.diagonal(dim1=-2, dim2=-1).mean())
    return damping * mean if mean > 0 else 1.0


def damped_cholesky(matrix: Tensor, damping: float) -> Tensor:
    """Return the lower Cholesky factors of ``matrix + damping I``.

    Args:
        matrix: (..., d, d), positive semidefinite up to rounding; the damping is added in place.
        damping: added to every diagonal element, and more where that does not make all matrices definite.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    for _ in range(TRIES):
        diagonal.add_(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed.any()):
            break
        # Rounding made the matrix indefinite: damp until it factors.
        damping = max(10 * damping, 1e-12 * float(diagonal.max()))
    lower: Tensor = factor
    return lower


class RowFactors:
    """Cholesky factors of ``scale_i (A_SS + damping I)`` for every output row i, on that row's kept inputs S_i.

    Rows of about equal support are factored together in batches. Where full factors would take more than
    ``max_bytes``, inputs are cut into blocks and only the diagonal blocks are kept (still exact within a block).
    Several processes may share the rows: each factors and solves some, and all have the results of all rows.

    Args:
        gram: (groups, d, d) Gram matrices of the layer's input; group g serves rows g * out/groups and on.
        mask: (out, d) bool, True where a weight is kept.
        damping: relative to the mean of the Gram diagonal; an all-zero Gram matrix is damped by 1.
        scale: (out,) positive curvature of each output row, default 1.
        max_bytes: upper bound for the stored factors.
        rest: puts a factor where it rests until it is read, for instance in a file; default: in memory.
        processes: who share the rows; default: this process has all of them.

    Attributes:
        block: inputs per block; d when factors are full.
    """

    def __init__(
        self,
        gram: Tensor,
        mask: Tensor,
        damping: float = 1e-4,
        scale: Tensor | None = None,
        max_bytes: float = math.inf,
        rest: Callable[[Tensor], Resting] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.rest, self.processes = rest, processes
        self.shape = mask.shape
        self.gram = gram
        self.mask = mask
        self.scale = scale
        self.damping = absolute_damping(gram, damping)
        self.block = self._block_size(max_bytes)
        self.parts: list[tuple[Tensor, Tensor, Tensor | Resting]] = []
        for start in range(0, mask.shape[1], self.block):
            self._factor_block(start, min(start + self.block, mask.shape[1]))

    def _block_size(self, max_bytes: float) -> int:
        block, bytes_ = self.mask.shape[1], full_factor_bytes(self.mask, self.gram)
        while block > 16 and bytes_ > max_bytes:
            block, bytes_ = -(-block // 2), bytes_ / 2  # twice the blocks, each a quarter
        return block

    def _factor_block(self, start: int, stop: int) -> None:
        mask = self.mask[:, start:stop]  # (out, block)
        counts = mask.sum(1)  # (out,): kept inputs of each row
        order = torch.argsort(counts, descending=True)
        order = order[counts[order] > 0][self.processes.rank :: self.processes.world]
        while len(order):
            width = int(counts[order[0]])
            room = max(1, int(ROOM.get(self.gram.device.type, ROOM_HOST) // (8 * width * width)))
            # A row that keeps far fewer inputs would waste work in this batch: it waits for the next one.
            fitting = int((counts[order[:room]] > 0.7 * width).sum())
            rows, order = order[: max(1, fitting)], order[max(1, fitting) :]
            support = torch.argsort(mask[rows].to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
            padding = ~mask[rows].gather(1, support)  # (rows, width), like support: where a row keeps fewer
            factor = self._factor(rows, support + start, padding)
            self.parts.append((rows, support + start, factor if self.rest is None else self.rest(factor)))

    def _factor(self, rows: Tensor, support: Tensor, padding: Tensor) -> Tensor:
        """Return lower Cholesky factors (rows, width, width); padded places are decoupled from the others.

        Args:
            rows: (rows,) output rows that are factored together.
            support: (rows, width) the inputs of each.
            padding: (rows, width) True where an input is no kept one of its row.
        """
        precise = widest(self.gram.device)
        group = rows // (self.shape[0] // self.gram.shape[0])
        # (rows, width, width): the part A_SS of the Gram matrix of a row's group
        matrix = self.gram[group[:, None, None], support[:, :, None], support[:, None, :]].to(precise)
        if bool(padding.any()):
            matrix.masked_fill_(padding[:, :, None] | padding[:, None, :], 0.0)
        return damped_cholesky(matrix, self.damping).to(self.gram.dtype)

    def read(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the rows of a batch (rows,), their kept inputs in one block (rows, width), and this process's factors.

        A row that keeps fewer inputs than ``width`` is filled up with others, which its factor decouples.
        """
        for rows, support, kept in self.parts:
            yield rows, support, kept if isinstance(kept, Tensor) else kept.load(self.gram.device)

    def solve(self, rhs: Tensor) -> Tensor:
        """Apply the inverse of the (block-diagonal) row-wise matrices to ``rhs`` (out, d); zero off the mask."""

        def solved(factor: Tensor, part: Tensor) -> Tensor:
            # Two triangular solves: on a CPU three times as fast as torch.cholesky_solve on a batch.
            half = torch.linalg.solve_triangular(factor, part, upper=False)
            whole: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
            return whole

        result = self._by_rows(rhs, solved)
        return result if self.scale is None else result / self.scale[:, None]

    def times(self, vectors: Tensor) -> Tensor:
        """Apply the matrices that :meth:`solve` inverts to ``vectors`` (out, d), zero off the mask as the result is."""
        result = self._by_rows(vectors, lambda factor, part: factor @ (factor.mT @ part))
        return result if self.scale is None else result * self.scale[:, None]

    def _by_rows(self, vectors: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return what a function makes of factors (rows, width, width) and the parts (rows, width, 1) of vectors."""
        result = torch.zeros_like(vectors)
        for rows, support, factor in self.read():
            part = vectors[rows[:, None], support].to(factor.dtype)  # (rows, width)
            result[rows[:, None], support] = function(factor, part.unsqueeze(-1)).squeeze(-1).to(vectors.dtype)
        return torch.where(self.mask, self.gather(result), 0.0)

    def gather(self, rows: Tensor) -> Tensor:
        """Return rows (out, d) that each process has computed where :meth:`read` yields them; the others are zero."""
        return self.processes.total(rows)
