"""The inverse of an empirical Fisher in blocks along its diagonal.

With gradients ``g_1 .. g_m`` of the weights of a block and dampening ``l`` it is that of ``l I + 1/m sum_i g_i g_i'``.
Singh & Alistarh 2020, "WoodFisher", equation 3, come there by one rank-one update a gradient (Sherman and Morrison)::

    F_0^-1 = I / l,    F_i^-1 = F_{i-1}^-1 - (F_{i-1}^-1 g_i) (F_{i-1}^-1 g_i)' / (m + g_i' F_{i-1}^-1 g_i)

Here the sum is one product of matrices, and its Cholesky factor gives the inverse: the same, in a sixth of the time for
256 gradients, as each of their updates reads and writes the whole block. Blocks are as many as fit at a time, and made
again when asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from snows_core.devices import widest

ROOM = 4e6  # bytes of the inverses that are there at a time: few enough to stay in a processor's cache


def inverse_blocks(gradients: Tensor, damping: float) -> Tensor:
    """Return the inverse of each block.

    Args:
        gradients: (m, blocks, size).
        damping: what is added to the diagonal, > 0.

    Returns:
        (blocks, size, size), in the widest number format of the device.
    """
    rows = gradients.transpose(0, 1).to(widest(gradients.device))  # (blocks, m, size)
    fisher = rows.mT @ rows / len(gradients)
    fisher.diagonal(dim1=1, dim2=2).add_(damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(fisher))


class BlockInverse:
    """The inverse of the empirical Fisher of all weights, in blocks within each layer.

    Args:
        gradients: (m, p).
        sizes: weights of each layer, adding up to p.
        damping: what is added to the diagonal, > 0.
        block: weights of a block at most.
    """

    def __init__(self, gradients: Tensor, sizes: Sequence[int], damping: float, block: int) -> None:
        self.gradients, self.sizes, self.damping, self.block = gradients, sizes, damping, block

    def diagonal(self) -> Tensor:
        """Return the diagonal (p,)."""
        return torch.cat([inverse.diagonal(dim1=1, dim2=2).flatten() for _, inverse in self._inverses()])

    def times(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (p,)."""
        parts = []
        for place, inverse in self._inverses():
            part = vector[place].to(inverse).view(len(inverse), -1, 1)
            parts.append((inverse @ part).flatten())
        return torch.cat(parts)

    def _inverses(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the places of blocks that lie side by side, and their inverses."""
        start = 0
        for size in self.sizes:
            whole = size // self.block * self.block
            together = max(1, int(ROOM / (8 * self.block**2))) * self.block
            edges = [*range(start, start + whole, together), start + whole]
            pieces = [(first, last, self.block) for first, last in itertools.pairwise(edges)]
            if whole < size:
                pieces.append((start + whole, start + size, size - whole))
            for first, last, block in pieces:
                own = self.gradients[:, first:last]
                yield slice(first, last), inverse_blocks(own.view(len(own), -1, block), self.damping)
            start += size
