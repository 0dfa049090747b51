"""What the graph of a computation takes in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from snows_core.network.graph import Network


@contextmanager
def saved_bytes(network: Network) -> Iterator[dict[int, int]]:
    """Count what autograd keeps of the operations inside: bytes by place in memory, the network's weights left out."""
    constant = {parameter.untyped_storage().data_ptr() for parameter in network.module.parameters()}
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in constant:
            storages[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: an output that its own node holds is a cycle, which nothing ever frees.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield storages
