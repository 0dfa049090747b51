"""How a layer reads its input: the geometry of convolutions, and the input laid out as a matrix."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.network.operations import module_of
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
        padding = "timm-same" if is_same_padded(module) else module.padding
        return Geometry(kernel, module.stride, padding, module.dilation, module.groups, module.padding_mode)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}

    def pair(name: str, default: int) -> tuple[int, int]:
        value = given.get(name, default)
        return (value, value) if isinstance(value, int) else tuple(value)

    padding = given.get("padding", 0)
    padding = padding if isinstance(padding, str) else pair("padding", 0)
    return Geometry(kernel, pair("stride", 1), padding, pair("dilation", 1), int(given.get("groups", 1)))


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
    padding = geometry.padding
    if padding == "timm-same":
        x, padding = pad_same(x, geometry.kernel, geometry.stride, geometry.dilation), (0, 0)
    elif padding == "valid":
        padding = (0, 0)
    elif padding == "same" or geometry.padding_mode != "zeros":
        sides: list[int] = []
        for axis in (1, 0):
            total = geometry.dilation[axis] * (geometry.kernel[axis] - 1)
            sides += [total // 2, total - total // 2] if padding == "same" else [padding[axis]] * 2
        x = F.pad(x, sides, mode="constant" if geometry.padding_mode == "zeros" else geometry.padding_mode)
        padding = (0, 0)
    if geometry.kernel == (1, 1) and padding == (0, 0):
        columns = x[:, :, :: geometry.stride[0], :: geometry.stride[1]].flatten(2)
    else:
        columns = F.unfold(x, geometry.kernel, geometry.dilation, padding, geometry.stride)
    return columns.reshape(len(x), geometry.groups, -1, columns.shape[-1])
