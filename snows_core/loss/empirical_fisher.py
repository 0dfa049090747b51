r"""Products with the empirical Fisher of a K-step loss: made of the images' gradients alone, and no curvature.

With the loss of an image ``l_i``, so that ``L`` is their mean over N images, and its gradient ``g_i`` in the weight:

.. math::  E = \frac 1 N \sum_i g_i g_i^T

What is singular where weights outnumber images, scales like a squared loss and vanishes where the errors do is no
second derivative (Kunstner, Hennig & Balles 2019, "Limitations of the Empirical Fisher Approximation for Natural
Gradient Descent"); it is here to be compared with one. A product takes two passes and forms no ``g_i``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.loss.batch_loss import BatchLoss, math_attention
from snows_core.loss.curvature import BatchCurvature


def empirical_fisher(batch: BatchLoss, weight: Tensor, images: int, total: int) -> BatchCurvature:
    """Return loss, gradient and ``v -> E v`` of a batch at a weight; those of all batches add up.

    Args:
        batch: the loss.
        weight: where.
        images: in this batch. Where axis 0 of a tap is not of images (tokens first), its errors are cut into as many
            equal parts all the same, which then are of several images each.
        total: images of all batches, N.

    Returns:
        The three, for that batch alone, in full precision.
    """
    free = weight.detach().clone().requires_grad_(True)
    with torch.enable_grad(), math_attention():
        _, errors = batch.at(free)
        squares = (
            c * error.square().reshape(images, -1).sum(1) for c, error in zip(batch.tap_weights, errors, strict=True)
        )
        parts = torch.stack(list(squares)).sum(0)  # (n,), l_i / N
        ones = torch.ones_like(parts, requires_grad=True)
        (gradient,) = torch.autograd.grad(parts, free, ones, create_graph=True)  # linear in ``ones``

    def product(direction: Tensor) -> Tensor:
        (slopes,) = torch.autograd.grad(gradient, ones, direction, retain_graph=True)  # g_i'v / N, (n,)
        return torch.autograd.grad(parts, free, total * slopes, retain_graph=True)[0]

    return BatchCurvature(parts.detach().sum(), gradient.detach(), product)
