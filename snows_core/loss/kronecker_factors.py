r"""K-FAC: the Fisher matrix of a layer as the Kronecker product of what comes in and what comes back.

For a layer with weight W (out, d), inputs a_t (d,) and gradients g_t (out,) at its outputs, at the T output positions
of an image, the Fisher of vec(W) is taken for ``S (x) A`` with

    A = E[ sum_t a_t a_t' ],    S = E[ sum_t g_t g_t' ] / T

(Martens & Grosse 2015, section 3; Grosse & Martens 2016, section 3, for convolutions: positions that are not
correlated). The change dW then costs ``tr(S dW A dW') / 2``. E is the mean over images, labels are given or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from snows_core.devices import widest
from snows_core.loss.gradients import TOGETHER, WHO
from snows_core.loss.scores import read_scores
from snows_core.network.geometry import geometry_of, patches
from snows_core.network.graph import Layer, Network, Values
from snows_core.network.nodes import first_input
from snows_core.network.operations import Kind


class KroneckerFactors(NamedTuple):
    """The factors of one layer's Fisher.

    Attributes:
        inputs: A, (d, d).
        outputs: S, (out, out).
    """

    inputs: Tensor
    outputs: Tensor


def kronecker_factors(
    network: Network, layers: Sequence[Layer], weights: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> dict[str, KroneckerFactors]:
    """Return the factors of some layers, whose convolutions have no groups of channels.

    Args:
        network: the traced network.
        layers: of it.
        weights: parameter name to weight, in place of the network's own.
        images: (N, C, H, W), anywhere.
        labels: class indices (N, *positions).

    Returns:
        Layer name to factors, in the widest number format of the device.
    """
    device = next(network.module.parameters()).device
    found: dict[str, KroneckerFactors] = {}
    for x, y in zip(torch.split(images, TOGETHER), torch.split(labels, TOGETHER), strict=True):
        values, probes = _probed(network, layers, weights, x.to(device))
        logits = read_scores(fx.map_arg(network.output, values.__getitem__), len(x), WHO).logits
        loss = F.cross_entropy(logits, y.to(device), reduction="sum")
        for layer, slope in zip(layers, torch.autograd.grad(loss, probes), strict=True):
            weight = network.weight(layer)
            rows = patches(values[first_input(layer.node)].detach(), geometry_of(layer.node, weight))[0]
            back = slope.movedim(1, -1) if layer.kind is Kind.CONVOLUTION else slope
            back = back.reshape(-1, weight.shape[0]).to(widest(device))  # (n T, out)
            rows = rows.to(widest(device))  # (n T, d)
            here = KroneckerFactors(rows.T @ rows / len(images), back.T @ back * (len(x) / len(rows)) / len(images))
            before = found.get(layer.name)
            found[layer.name] = here if before is None else KroneckerFactors(*map(torch.add, before, here))
    return found


def _probed(
    network: Network, layers: Sequence[Layer], weights: Mapping[str, Tensor], x: Tensor
) -> tuple[Values, list[Tensor]]:
    """Run a network and return all values, and zeros that were added to the outputs of layers, for their gradients."""
    places = {layer.node for layer in layers}
    probes: dict[fx.Node, Tensor] = {}
    values: Values = {network.image: x}
    with torch.enable_grad():
        for node in network.nodes[1:]:
            network.run((node,), values, weights)
            if node in places:
                probes[node] = torch.zeros_like(values[node]).requires_grad_(True)
                values[node] = values[node] + probes[node]
    return values, [probes[layer.node] for layer in layers]
