"""How a layer reads its input: the geometry of convolutions, and the input laid out as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.network.nodes import module_of
from snows_core.network.timm_layers import is_same_padded, pad_same


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    Attributes:
        kernel: (height, width) of the convolution, or None for a linear layer.
        stride: (vertical, horizontal) step.
        padding: explicit zero padding (vertical, horizontal), or "same"/"valid", or "timm-same" (dynamic).
        dilation: (vertical, horizontal) spacing.
        groups: number of channel groups.
        padding_mode: as in ``nn.Conv2d``.
    """

    kernel: tuple[int, int] | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"


def geometry_of(node: fx.Node, weight: Tensor) -> Geometry:
    """Read a layer's geometry from the module or the function that ``node`` calls; ``weight`` is (out, in, ...)."""
    if weight.ndim == 2:
        return Geometry(None)
    kernel = (int(weight.shape[-2]), int(weight.shape[-1]))
    module = module_of(node)
    if isinstance(module, nn.Conv2d):
        padding = "timm-same" if is_same_padded(module) else _pair_or_name(module.padding)
        stride, dilation = _pair(module.stride), _pair(module.dilation)
        return Geometry(kernel, stride, padding, dilation, module.groups, module.padding_mode)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    return Geometry(kernel, stride, _pair_or_name(given.get("padding", 0)), dilation, int(given.get("groups", 1)))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return (vertical, horizontal) from what PyTorch takes: one number for both, or both."""
    vertical, horizontal = (value, value) if isinstance(value, int) else value
    return vertical, horizontal


def _pair_or_name(padding: int | Sequence[int] | str) -> tuple[int, int] | str:
    return padding if isinstance(padding, str) else _pair(padding)


def patches(x: Tensor, geometry: Geometry) -> Tensor:
    """Lay out a layer's input as a matrix with one row per image and position.

    Args:
        x: (N, C, H, W) for a convolution, (..., in) for a linear layer.
        geometry: how the layer reads it.

    Returns:
        (groups, rows, in / groups * kernel elements), columns in the order of ``weight.flatten(1)``.
    """
    if geometry.kernel is None:
        return x.reshape(1, -1, x.shape[-1])
    columns = columns_of(x, geometry)
    groups, width = columns.shape[1:3]
    return columns.permute(1, 0, 3, 2).reshape(groups, -1, width)


def columns_of(x: Tensor, geometry: Geometry) -> Tensor:
    """Lay out the input (N, C, H, W) of a convolution as (N, groups, in / groups * kernel elements, positions)."""
    kernel = geometry.kernel
    assert kernel is not None  # a linear layer lays nothing out
    x, padding = _padded(x, geometry, kernel)  # (N, C, H, W) with borders
    if kernel == (1, 1) and padding == (0, 0):
        columns = x[:, :, :: geometry.stride[0], :: geometry.stride[1]].flatten(2)  # (N, C, positions)
    else:
        columns = F.unfold(x, kernel, geometry.dilation, padding, geometry.stride)  # (N, C * kernel, positions)
    return columns.reshape(len(x), geometry.groups, -1, columns.shape[-1])


def _padded(x: Tensor, geometry: Geometry, kernel: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Return the images with the borders that ``F.unfold`` cannot make, and the zero padding that is left to it."""
    padding = geometry.padding
    if padding == "timm-same":
        return pad_same(x, kernel, geometry.stride, geometry.dilation), (0, 0)
    if padding == "valid":
        return x, (0, 0)
    if not isinstance(padding, str) and geometry.padding_mode == "zeros":
        return x, padding
    sides: list[int] = []  # left, right, top, bottom
    for axis in (1, 0):
        total = geometry.dilation[axis] * (kernel[axis] - 1)
        sides += [total // 2, total - total // 2] if isinstance(padding, str) else [padding[axis]] * 2
    return F.pad(x, sides, mode="constant" if geometry.padding_mode == "zeros" else geometry.padding_mode), (0, 0)
