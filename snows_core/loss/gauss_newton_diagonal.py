r"""The diagonal of the Gauss-Newton matrix of a network's cross-entropy, which needs no labels.

.. math::  H_{jj} = \frac 1 N \sum_i J_{ij}' C_i J_{ij}, \qquad C = \mathrm{diag}(p) - p p' = \sum_c v_c v_c', \quad
           v_c = \sqrt{p_c} (e_c - p)

with ``J`` the Jacobian of the logits in one weight and p the network's own probabilities: with few classes the sum over
c is taken as it stands, one backward pass a class and image. With many, or with pixels, a random vector of covariance C
takes its place, one a image (:func:`~snows_core.loss.fisher.output_signal`), which has the same expectation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from snows_core.distributed import current
from snows_core.loss.fisher import output_signal, pass_over
from snows_core.loss.gradients import WHO
from snows_core.loss.logits import add_squared_gradients, free_copies, network_scores
from snows_core.network.graph import Network

FEW = 16  # logits of an image up to which each class has a backward pass of its own


def gauss_newton_diagonal(
    network: Network, weights: Mapping[str, Tensor], images: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the formula at the top of this file.

    Args:
        network: the traced network.
        weights: parameter name to weight, of all weights that are asked for; the others are the dense network's.
        images: (N, C, H, W), anywhere.
        generator: source of the random signs where there are many logits; drawn on its own device.

    Returns:
        Parameter name to numbers that are not negative, of the weight's shape.

    Raises:
        SnowsError: where the network's output is not one tensor of finite logits.
    """
    device = next(network.module.parameters()).device
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    free = free_copies(weights)
    shown = network_scores(network, images[:1].to(device), {}, WHO).logits if current().several else None
    for number, x in enumerate(torch.split(images, 1)):
        if shown is not None and not current().takes(number):
            if shown.numel() > FEW:
                pass_over(shown, 1, generator)
            continue
        logits = network_scores(network, x.to(device), free, WHO).logits
        for signal in _signals(logits.detach().softmax(1), generator):
            add_squared_gradients(total, logits, free, signal, keep_graph=True)
    sums = zip(total, current().totals(list(total.values())), strict=True)
    return {name: squares / len(images) for name, squares in sums}


def _signals(chances: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield vectors at the logits of one image whose outer products add up to C, exactly or in the mean."""
    if chances.numel() > FEW:
        yield output_signal(chances, chances, generator)
        return
    for label in range(chances.shape[1]):
        unit = torch.zeros_like(chances)
        unit[:, label] = 1.0
        yield chances[:, label, None].sqrt() * (unit - chances)
