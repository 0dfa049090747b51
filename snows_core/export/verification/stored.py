"""Weights of layers as files hold them: their values with outputs first, and where each of these stands in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snows_core.errors import blamed
from snows_core.masks.mask_values import plain_values
from snows_core.masks.names import read_spelling


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """The weight of a layer in a file.

    Attributes:
        layer: name of the layer, as far as the file tells it.
        weight: name of the tensor in the file.
        values: (out, in, *kernel).
        shape: of the tensor in the file.
        axis: its axis along which the inputs run.
        kind: the operation that reads it; empty where the file does not say.
        places: where each of ``values`` stands in the tensor of the file, flattened, int64 of their shape; None where
            the order is the same.
        exact: False where the file holds whole numbers for them, among which small values became zero.
    """

    layer: str
    weight: str
    values: Tensor
    shape: tuple[int, ...]
    axis: int = 1
    kind: str = ""
    places: Tensor | None = None
    exact: bool = True

    @property
    def zeros(self) -> int:
        """How many values are zero."""
        return self.values.numel() - int(torch.count_nonzero(self.values))

    def stored_index(self, positions: Tensor) -> Tensor:
        """Return where values stand in the tensor of the file.

        Args:
            positions: (n,) int64, in the flattened ``values``.

        Returns:
            (n, axes of the file's tensor) int64.
        """
        places = positions if self.places is None else self.places.flatten()[positions]
        return torch.from_numpy(np.stack(np.unravel_index(places.numpy(), self.shape), 1)).to(torch.int64)

    def own_index(self, positions: Tensor) -> Tensor:
        """Return (output, input, *kernel position) of values, (n, axes), for their ``positions``, (n,)."""
        return torch.from_numpy(np.stack(np.unravel_index(positions.numpy(), self.values.shape), 1)).to(torch.int64)


def weights_of_state(state: Mapping[str, Tensor], layers: Mapping[str, str] | None = None) -> list[StoredWeight]:
    """Return the weights of layers in a state dict: what is called "weight" and has two axes or more.

    A weight that ``torch.nn.utils.prune`` keeps as ``weight_orig`` and ``weight_mask`` is their product.

    Args:
        state: name to tensor; others than weights are passed over.
        layers: weight name to layer name where they are known.

    Raises:
        SnowsError: on weights that are complex, quantised, nested, or without data.
    """
    names, found = dict(layers or {}), list[StoredWeight]()
    masks = {spelling.base: state[key] for key in state if (spelling := read_spelling(key)) and spelling.role == "mask"}
    for key, value in state.items():
        spelling = read_spelling(key)
        role, name = ("weight", key) if spelling is None else (spelling.role, spelling.base)
        known = name in names
        if role != "weight" or not (known or name.endswith("weight")) or value.ndim < 2 or value.dtype == torch.bool:
            continue
        with blamed("masks", on="source"):
            values = readable(plain_values(key, value))
        if name in masks and masks[name].shape == values.shape:
            values = values * masks[name].detach()
        layer = names.get(name) or name.removesuffix(".weight")
        found.append(StoredWeight(layer, key, values, tuple(values.shape), exact=values.is_floating_point()))
    return found


def readable(values: Tensor) -> Tensor:
    """Return values on the CPU, in a type that PyTorch compares there: eight-bit floats become float32."""
    values = values.cpu()
    return values.float() if values.is_floating_point() and values.element_size() == 1 else values
