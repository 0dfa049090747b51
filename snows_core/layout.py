"""Memory layout of images and convolutions: channels last where the network runs in it."""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.graph import Network
from snows_core.operations import Kind


def channels_last(network: Network, images: Tensor) -> Tensor:
    """Lay a convolutional network and its images out channels last, unless its forward pass needs the usual layout.

    Convolutions and their derivatives are faster so (measured on a CPU: values and gradients of a ResNet by a quarter,
    products by a tenth). Only strides change, no value. A network that calls ``view`` on what a convolution gave
    refuses such strides, and keeps the usual ones.

    Args:
        network: the traced network, changed in place.
        images: (N, C, H, W).

    Returns:
        The images, in the layout that the network now has.
    """
    if not any(layer.kind is Kind.CONVOLUTION and not network.is_first(layer) for layer in network.layers):
        return images
    device = next(network.module.parameters()).device
    example = images[: min(2, len(images))].to(device, memory_format=torch.channels_last)
    network.module.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            network.module(example)
    except RuntimeError:
        network.module.to(memory_format=torch.contiguous_format)
        return images
    return images.contiguous(memory_format=torch.channels_last)
