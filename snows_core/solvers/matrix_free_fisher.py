"""Products with the inverse of an empirical Fisher of all weights, which is never formed.

For gradients ``g_1 .. g_m`` and ``F_i = l I + 1/m sum_{j <= i} g_j g_j'``, each rank-one update of the inverse is kept
as a vector ``v_i = F_{i-1}^-1 g_i`` and a number ``q_i = m + g_i' v_i`` (Frantar, Kurtic and Alistarh 2021, "M-FAC:
Efficient Matrix-Free Approximations of Second-Order Information", section 3, the static algorithm)::

    F_m^-1 x = x / l - sum_i v_i (v_i' x) / q_i

Making them takes O(p m^2) operations and one more copy of the gradients, a product O(p m).
"""

from __future__ import annotations

import torch
from torch import Tensor


class MatrixFreeInverse:
    """The inverse of ``damping I + 1/m sum_i g_i g_i'``.

    Args:
        gradients: (m, p).
        damping: what is added to the diagonal, > 0.
    """

    def __init__(self, gradients: Tensor, damping: float) -> None:
        self.damping = damping
        self.vectors = torch.empty_like(gradients)
        self.scales = gradients.new_empty(len(gradients))
        for number, gradient in enumerate(gradients):
            along = self._times(gradient, number)
            self.vectors[number] = along
            self.scales[number] = len(gradients) + gradient @ along

    def diagonal(self) -> Tensor:
        """Return the diagonal (p,)."""
        found = torch.full_like(self.vectors[0], 1 / self.damping)
        for along, scale in zip(self.vectors, self.scales, strict=True):
            found -= along.square() / scale
        return found

    def times(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (p,)."""
        return self._times(vector, len(self.vectors))

    def _times(self, vector: Tensor, count: int) -> Tensor:
        """Return the product with the inverse after the first ``count`` gradients."""
        made = self.vectors[:count]
        return vector / self.damping - made.mT @ ((made @ vector) / self.scales[:count])
