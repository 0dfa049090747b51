r"""The K-step loss of one batch as a function of the layer's weight: errors, their squares, and the gradient.

.. math::  L_b(W) = \sum_{k=0}^{K} c_k \lVert f_{l:l+k}(X_b; W) - Y_{b,l+k} \rVert^2

(Lucas & Mazumder 2025, section 3). The weights c_k are those of all batches, so the losses of the batches add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from snows_core.distributed import Share
from snows_core.loss.folded_segment import FoldedSegment
from snows_core.network.graph import Values


def math_attention() -> AbstractContextManager[None]:
    """Choose plain attention, for derivatives alone: fused attention kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch of N images.

    Attributes:
        folded: the segment, ready to run.
        context: what it reads from outside (:meth:`.ActivationCache.context`).
        targets: the dense network's outputs Y_k, (N, C_k, *positions) or (N, ..., C_k), one a tap.
        tap_weights: c_k, one a tap.
        share: which images of a larger batch these are, and its number; None where they are all.
    """

    folded: FoldedSegment
    context: Values
    targets: Sequence[Tensor]
    tap_weights: Sequence[float]
    share: tuple[Share, int] | None = None

    def errors(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return, tap by tap, what is squared and summed: ``outputs`` minus targets, scaled by the tap rule."""
        return [self._error(k, output, target) for k, (output, target) in enumerate(self._paired(outputs))]

    def _paired(self, outputs: Sequence[Tensor]) -> zip[tuple[Tensor, Tensor]]:
        return zip(outputs, self.targets, strict=True)

    def _error(self, k: int, output: Tensor, target: Tensor) -> Tensor:
        difference, scale = output - target, self.folded.tap_scales[k]
        return difference if scale is None else difference * scale.view(1, -1, *(1,) * (difference.ndim - 2))

    @torch.no_grad()
    def squares(self, weight: Tensor) -> Tensor:
        """Return the sum of squared errors of every tap at a weight, (K + 1,), without the factors c_k."""
        sums: dict[int, Tensor] = {}
        for k, output in self.folded.stream(self.context, weight):
            if self.folded.tap_scales[k] is None:  # in one pass over the numbers
                sums[k] = functional.mse_loss(output, self.targets[k], reduction="sum")
            else:
                sums[k] = self._error(k, output, self.targets[k]).square().sum()
        return torch.stack([sums[k] for k in range(len(sums))])

    def at(self, free: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the loss, a scalar, and the errors at ``free``, a leaf; autograd follows it where grad is enabled."""
        errors = self.errors(self.folded.run(self.context, free))
        first, *others = (c * error.square().sum() for c, error in zip(self.tap_weights, errors, strict=True))
        return sum(others, first), errors

    def gradient(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss at a weight, a scalar, and its gradient there, of the weight's shape; no graph is kept."""
        free = weight.detach().clone().requires_grad_(True)
        with torch.enable_grad(), math_attention():
            loss, _ = self.at(free)
            (gradient,) = torch.autograd.grad(loss, free)
        return loss.detach(), gradient
