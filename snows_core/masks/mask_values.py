"""The values of masks: 0 and 1 of any type, read as bool."""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.errors import invalid_argument


def plain_values(name: str, value: Tensor) -> Tensor:
    """Return a tensor of masks or weights without a graph, dense.

    Args:
        name: its name, for the message.
        value: the tensor.

    Raises:
        SnowsError: on tensors without data, complex, quantised and nested ones.
    """
    faults = {"complex": value.is_complex(), "quantised": value.is_quantized, "nested": value.is_nested}
    if what := next((what for what, is_so in faults.items() if is_so), ""):
        raise invalid_argument("masks", f"a {what} tensor under '{name}'", "a tensor of bool, or of real numbers")
    if value.is_meta:
        raise invalid_argument("masks", f"a tensor without data under '{name}'", "a dictionary of tensors")
    return value.detach() if value.layout is torch.strided else value.detach().to_dense()


def is_binary(value: Tensor) -> bool:
    """Tell whether a tensor holds nothing but 0 and 1."""
    return value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())


def read_mask(name: str, value: Tensor) -> Tensor:
    """Return a mask of any type that holds nothing but 0 and 1 as bool.

    Args:
        name: of the mask, for the message.
        value: the mask.

    Returns:
        Bool tensor; the same object where it is one already.

    Raises:
        SnowsError: on any other value.
    """
    if value.dtype == torch.bool:
        return value
    if not is_binary(value):
        odd = value[(value != 0) & (value != 1)].flatten()[0].item()
        raise invalid_argument(
            "masks",
            f"the value {odd:g} in '{name}'",
            "a mask of nothing but 0 (removed) and 1 (kept), or bool",
            "Compare with 0 to make one: mask = weight != 0.",
        )
    return value != 0
