"""What the core knows of timm, without importing it: a few layers by their names, and what timm keeps from tracing.

A network that holds a layer of timm has loaded timm already; for every other network the core works without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F

_SAME_PADDED = ("timm.layers.conv2d_same", "Conv2dSame")
_NORM_ACT = ("timm.layers.norm_act", "BatchNormAct2d")
_ATTENTIONS = (  # the second is where older versions of timm have the first
    ("timm.layers.attention", "Attention"),
    ("timm.models.vision_transformer", "Attention"),
    ("timm.models.swin_transformer", "WindowAttention"),
)


def is_same_padded(module: Any) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is timm's ``Conv2dSame``, whose padding depends on the size of its input."""
    return any(_place(kind) == _SAME_PADDED for kind in type(module).__mro__)


def is_plain_same_padded(module: Any) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is timm's ``Conv2dSame`` itself, and none of its subclasses."""
    return _place(type(module)) == _SAME_PADDED


def is_norm_act(module: Any) -> bool:
    """Tell whether a module is timm's ``BatchNormAct2d`` itself: batch norm, dropout and activation in one."""
    return _place(type(module)) == _NORM_ACT


def is_attention(module: Any) -> bool:
    """Tell whether a module is timm's attention of a ViT or of Swin itself, with layers ``qkv`` and ``proj``."""
    return _place(type(module)) in _ATTENTIONS


def _place(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Pad images with zeros as TensorFlow's "same" does: the output has ceil(size / stride) positions an axis.

    Where the padding is odd, the further element goes to the right and to the bottom.

    Args:
        x: images (N, C, H, W).
        kernel: (height, width) of the convolution.
        stride: (vertical, horizontal) step.
        dilation: (vertical, horizontal) spacing.

    Returns:
        The padded images (N, C, H + padding, W + padding).
    """
    sides: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last axis
        size = x.shape[axis - 2]
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        total = max(0, (-(-size // stride[axis]) - 1) * stride[axis] + reach - size)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


def untraced_functions() -> tuple[Callable[..., Any], ...]:
    """Return the functions that timm, or a user through timm, has registered as not to be traced."""
    layers = sys.modules.get("timm.layers")
    return () if layers is None else tuple(f for f in layers.get_notrace_functions() if callable(f))


def untraced_modules() -> tuple[type[nn.Module], ...]:
    """Return the classes of modules that timm, or a user through timm, has registered as not to be traced."""
    layers = sys.modules.get("timm.layers")
    return () if layers is None else tuple(layers.get_notrace_modules())
