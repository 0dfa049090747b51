r"""The diagonal Fisher information of a network's weights about its answers, without labels.

.. math::  F_j = \frac 1 N \sum_i \sum_y p_0(y | x_i) \left(\partial \log p_w(y | x_i) / \partial w_j\right)^2

with ``p_0`` of the dense network and ``p_w`` of the one with the weights given; where the two are one, it is the
diagonal of the second derivative of KL(p_0 || p_w) (Martens 2020, section 5). Pixels count each, with labels of their
own. No label is drawn: with ``C = diag(p_0) - p_0 p_0'`` and random signs e and e', the vector

    u = B e + (p_0 - p_w) e',   B = diag(sqrt p_0) - p_0 sqrt(p_0)',   B B' = C

has the second moment of ``onehot(y) - p_w``, the gradient in the logits, for y from ``p_0``; a confident network nearly
always draws one and the same label, which tells little. Signs of several images are independent, so that the square of
the sum of their gradients has the expectation of the sum of squares (Hutchinson's estimator).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snows_core.devices import batch_bytes
from snows_core.distributed import current
from snows_core.loss.curvature import random_signs
from snows_core.loss.graph_bytes import saved_bytes
from snows_core.loss.logits import add_squared_gradients, free_copies, network_scores
from snows_core.network.graph import Network

TOGETHER = 8  # images whose gradients are squared as one: fewer are less noisy, more are faster
WHO = "saliency 'fisher'"  # for messages


def diagonal_fisher(
    network: Network, weights: Mapping[str, Tensor], images: Tensor, generator: torch.Generator, probes: int = 1
) -> dict[str, Tensor]:
    """Estimate the formula at the top of this file.

    Args:
        network: the traced dense network.
        weights: parameter name to weight, of all weights that are asked for; the others are the dense network's.
        images: calibration images (N, C, H, W), anywhere.
        generator: source of the random signs; drawn on its own device.
        probes: how many signs each logit gets, one after the other; the mean is taken.

    Returns:
        Parameter name to numbers that are not negative, of the weight's shape.

    Raises:
        SnowsError: where the network's output is not one tensor of finite logits.
    """
    device = next(network.module.parameters()).device
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with saved_bytes(network) as storages:
        shown = network_scores(network, images[:1].to(device), free_copies(weights), WHO).logits
    together = max(1, min(TOGETHER, int(batch_bytes(device) / max(1, sum(storages.values())))))
    for number, x in enumerate(torch.split(images, together)):
        if not current().takes(number):  # another process squares these, with the signs that one process would draw
            for _ in range(probes):
                pass_over(shown, len(x), generator)
            continue
        x, free = x.to(device), free_copies(weights)
        dense = network_scores(network, x, {}, WHO).logits.softmax(1)  # (n, classes, *positions)
        logits = network_scores(network, x, free, WHO).logits
        for probe in range(1, probes + 1):
            signal = output_signal(dense, logits.detach().softmax(1), generator)
            add_squared_gradients(total, logits, free, signal, keep_graph=probe < probes)
    sums = zip(total, current().totals(list(total.values())), strict=True)
    return {name: squares / (len(images) * probes) for name, squares in sums}


def pass_over(shown: Tensor, images: int, generator: torch.Generator) -> None:
    """Draw what :func:`output_signal` draws for images of another process, so that the next are those of one process.

    Args:
        shown: logits of one image.
        images: how many.
        generator: source of the random signs.
    """
    for part in (shown, shown[:, :1]):
        random_signs(part.new_empty(images, *part.shape[1:]), generator)


def output_signal(dense: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
    """Return u of the formula at the top of this file.

    Args:
        dense: probabilities p_0 (n, classes, *positions).
        own: probabilities p_w of the same shape.
        generator: source of the random signs.
    """
    drawn = dense.sqrt() * random_signs(dense, generator)
    drawn = drawn - dense * drawn.sum(1, keepdim=True)  # B e
    return drawn + (dense - own) * random_signs(dense[:, :1], generator)
