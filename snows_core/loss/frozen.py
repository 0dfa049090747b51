"""Convolutions with constant weights, differentiable any number of times without the gradient of the weight.

PyTorch's double backward of a convolution also computes the gradient of the weight whenever its input has a tangent,
even where that weight needs none, and its backward keeps the input alive for it. Behind the layer that is being solved
every weight is constant, so both are wasted: a frozen convolution is a linear map, its derivative is the transposed
convolution, and the derivative of that is the convolution again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Not ``_ConvNd``, which transposed convolutions are too.
ConvolutionModule = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Shape:
    """Stride, padding, dilation and groups of a convolution whose padding is explicit zeros."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def frozen_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
    """Convolve with constant weight and bias, in one, two or three dimensions.

    Args:
        x: (N, C, *positions).
        weight: (out, C / groups, *kernel); no gradient flows to it.
        bias: (out,) or None; likewise.
        shape: stride and so on.

    Returns:
        (N, out, *positions), the same numbers as ``torch.nn.functional.conv2d``.
    """
    if not x.requires_grad or torch.is_autocast_enabled(x.device.type):
        return _convolve(x, weight, bias, shape)
    output: Tensor = _Convolution.apply(x, weight.detach(), None if bias is None else bias.detach(), shape)
    return output


def shape_of(module: nn.Module | None) -> Shape | None:
    """Return the shape of a plain convolution module; None for any other, or where padding is not explicit zeros."""
    if not isinstance(module, ConvolutionModule) or type(module) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return None  # a subclass may pad or compute as it likes
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    return Shape(module.stride, module.padding, module.dilation, module.groups)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
    function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    return function(x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)


class _Convolution(torch.autograd.Function):
    """``x -> W x + b`` for a constant W; x (N, C, *positions), the output (N, out, *positions)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        return _convolve(x, weight, bias, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.weight, _, ctx.shape = inputs
        ctx.size = x.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Transposed.apply(gradient, ctx.weight, ctx.shape, ctx.size), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: None) -> Tensor:
        output: Tensor = _Convolution.apply(tangent, ctx.weight, None, ctx.shape)
        return output


class _Transposed(torch.autograd.Function):
    """``g -> W' g``, the derivative of the convolution; its own derivative is the convolution without bias.

    ``g`` is (N, out, *positions), the result has the size (N, C, *positions) of the convolution's input.
    """

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, shape: Shape, size: torch.Size) -> Tensor:
        like = gradient.new_empty(()).expand(size)  # only its shape is read
        dimensions = weight.ndim - 2
        parts: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            gradient,
            like,
            weight,
            None,
            shape.stride,
            shape.padding,
            shape.dilation,
            False,
            [0] * dimensions,
            shape.groups,
            [True, False, False],
        )
        return parts[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.weight, ctx.shape, ctx.size = inputs

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, None, None, None]:
        return _Convolution.apply(tangent, ctx.weight, None, ctx.shape), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: None) -> Tensor:
        output: Tensor = _Transposed.apply(tangent, ctx.weight, ctx.shape, ctx.size)
        return output
