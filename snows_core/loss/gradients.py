r"""Gradients of the loss image by image, and labels to take them for where there are none.

The empirical Fisher is ``F = 1/n sum_i g_i g_i'`` with ``g_i`` the gradient of ``-log p_w(y_i | x_i)`` in all weights
asked for. With given labels it is what OBS-type methods call so; with labels drawn from the dense network's own softmax
its expectation is the true Fisher information (Martens 2020, section 5), which at the dense weights is the Gauss-Newton
matrix of the cross-entropy. Pixels of one image have labels of their own, and the image's gradient is their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from snows_core.activations.calibration import near_equal
from snows_core.distributed import current
from snows_core.loss.logits import free_copies, network_scores
from snows_core.loss.scores import Scores, read_labels
from snows_core.network.graph import Network

TOGETHER = 8  # images of one forward or backward pass at most
WHO = "a method that looks at the whole network"  # for messages


def drawn_labels(network: Network, images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a label for each image, or each pixel, from the softmax of the dense network.

    Args:
        network: the traced dense network.
        images: (N, C, H, W), anywhere.
        generator: of the CPU, so that every device draws the same.

    Returns:
        Class indices (N, *positions), on the CPU.

    Raises:
        SnowsError: where the network's output is not one tensor of finite logits.
    """
    device = next(network.module.parameters()).device
    found = []
    for x in torch.split(images, TOGETHER):
        chances = network_scores(network, x.to(device), {}, WHO).logits.cpu().double().softmax(1).movedim(1, -1)
        drawn = torch.multinomial(chances.reshape(-1, chances.shape[-1]), 1, generator=generator)
        found.append(drawn.view(chances.shape[:-1]))
    return current().from_main(torch.cat(found))


def check_labels(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Refuse labels that are no classes of a network's answers to whole images.

    Args:
        network: the traced dense network.
        images: (N, C, H, W), anywhere; one is run.
        labels: class indices (N,).

    Returns:
        The labels.

    Raises:
        SnowsError: names the first label that is no class, or says what the network's output is instead of logits.
    """
    device = next(network.module.parameters()).device
    scores = network_scores(network, images[:1].to(device), {}, WHO)
    everyones = Scores(scores.logits.expand(len(labels), *scores.logits.shape[1:]), scores.one_logit)
    return read_labels(labels, everyones)[0].cpu()


def gradient_rows(network: Network, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor, rows: int) -> Tensor:
    """Return gradients whose outer products add up to the empirical Fisher: ``F ~ G' G / len(G)``.

    One row is the gradient of one image where ``rows`` are enough. Otherwise it is that of a mini-batch of b images, as
    in WoodFisher (Singh & Alistarh 2020, section 4), the mean times ``sqrt(b)``: with gradients of mean zero, as they
    are for drawn labels at the dense weights, its outer product has the expectation of an image's.

    Args:
        network: the traced network.
        weights: parameter name to weight, where the gradients are taken; others are the dense network's.
        images: (N, C, H, W), anywhere.
        labels: class indices (N, *positions).
        rows: how many at most.

    Returns:
        (min(N, rows) or fewer, p), in the order of ``weights``, on the device of the network.
    """
    sizes = near_equal(len(images), -(-len(images) // rows))
    like = next(iter(weights.values()))
    found = like.new_zeros(len(sizes), sum(weight.numel() for weight in weights.values()))
    free = free_copies(weights)
    batches = zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
    for number, (row, (batch, answers)) in enumerate(zip(found, batches, strict=True)):
        if not current().takes(number):  # another process fills this row
            continue
        for x, y in zip(torch.split(batch, TOGETHER), torch.split(answers, TOGETHER), strict=True):
            logits = network_scores(network, x.to(like.device), free, WHO).logits
            loss = F.cross_entropy(logits, y.to(like.device), reduction="sum")
            row += torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(free.values()))])
        row /= math.sqrt(len(batch))
    return current().total(found)
