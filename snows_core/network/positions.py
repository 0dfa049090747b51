"""At how many output positions an image makes a layer use each of its weights: what a weight costs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from snows_core.network.graph import Layer, Network, Values


@torch.no_grad()
def output_positions(network: Network, layers: Iterable[Layer], image: Tensor) -> dict[str, float]:
    """Count the output positions of layers: height times width of a convolution's output, tokens of a linear layer.

    A weight of a layer takes part in as many multiplications for each image.

    Args:
        network: the traced network.
        layers: some of its layers.
        image: one image (1, C, H, W), on the network's device.

    Returns:
        Layer name to the number.
    """
    wanted = {layer.node: layer for layer in layers}
    values: Values = {network.image: image}
    found: dict[str, float] = {}
    for node in network.nodes[1:]:
        network.run((node,), values)
        if layer := wanted.get(node):
            found[layer.name] = values[node].numel() / len(network.weight(layer))
        network.liveness.drop(values, node)
    return found
