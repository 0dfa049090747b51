"""Memory layout of images and convolutions: channels last where the network runs in it."""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.network.graph import Network
from snows_core.network.operations import Kind


def channels_last(network: Network, images: Tensor) -> Tensor:
    """Lay a convolutional network and images out channels last, unless its forward pass needs the usual layout.

    Convolutions and their derivatives are faster so (measured on a CPU: values and gradients of a ResNet by a quarter,
    products by a tenth). Only strides change, no value. A network that calls ``view`` on what a convolution gave
    refuses such strides, and keeps the usual ones.

    Args:
        network: the traced network, changed in place.
        images: (N, C, H, W); the first two are tried.

    Returns:
        The images, in the layout that the network now has.
    """
    if not any(layer.kind is Kind.CONVOLUTION and not network.is_first(layer) for layer in network.layers):
        return images
    device = next(network.module.parameters()).device
    example = images[:2].to(device, memory_format=torch.channels_last)
    _lay_out(network, torch.channels_last)
    try:
        with torch.no_grad():
            network.run(network.nodes[1:], {network.image: example})
    except RuntimeError:
        _lay_out(network, torch.contiguous_format)
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _lay_out(network: Network, layout: torch.memory_format) -> None:
    """Change the strides of every four-dimensional parameter; others have no such layout."""
    for parameter in network.module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
