"""What the derivative of an operation tells: all of it, a part, or nothing; and where an operation has no curvature."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from snows_core.network.nodes import module_of, name_of
from snows_core.network.operations import (
    CONVOLUTION_FUNCTIONS,
    CONVOLUTIONS,
    hard_sigmoid,
    is_batch_norm,
    uses_batch_statistics,
    weight_of,
)

_PIECEWISE_LINEAR_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.Hardtanh,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    *CONVOLUTIONS,
    nn.Linear,
)
_PIECEWISE_LINEAR_FUNCTIONS = {
    operator.add,
    operator.sub,
    operator.neg,
    operator.getitem,
    torch.add,
    torch.sub,
    torch.cat,
    torch.flatten,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.hardtanh,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    F.max_pool2d,
    F.pad,
    F.dropout,
    hard_sigmoid,
}
_PIECEWISE_LINEAR_METHODS = {"view", "reshape", "flatten", "permute", "transpose", "mean", "contiguous", "add", "relu"}
# Names of functions and methods whose output follows its input in jumps, or with no gradient at all.
_CUT_OFF = {
    "detach",
    "detach_",
    "data",
    "round",
    "floor",
    "ceil",
    "trunc",
    "fix",
    "sign",
    "sgn",
    "heaviside",
    "floordiv",
    "floor_divide",
    "long",
    "int",
    "short",
    "char",
    "byte",
    "bool",
    "one_hot",
    "bernoulli",
    "multinomial",
    "poisson",
    "bucketize",
    "searchsorted",
    "histc",
    "bincount",
    "fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine",
    "quantize_per_tensor",
    "item",
    "tolist",
    "numpy",
}
# Names of those that only decide: their own derivative is zero, and that of what they choose from is right.
_DECISIONS = {
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "equal",
    "greater",
    "less",
    "greater_equal",
    "less_equal",
    "not_equal",
    "isnan",
    "isinf",
    "isfinite",
    "isclose",
    "signbit",
    "logical_and",
    "logical_or",
    "logical_not",
    "logical_xor",
    "and_",
    "or_",
    "xor",
    "invert",
    "bitwise_and",
    "bitwise_or",
    "bitwise_not",
    "bitwise_xor",
    "any",
    "all",
    "argmax",
    "argmin",
    "argsort",
    "nonzero",
    "count_nonzero",
    "argwhere",
    "contains",
    "not_",
    "is_",
    "is_not",
}
_WITH_INDICES = {"topk", "sort", "max", "min", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin"}
_SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad", "is_nested", "itemsize"}
_SHAPE_METHODS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "is_floating_point",
    "is_complex",
    "is_contiguous",
    "element_size",
    "get_device",
    "len",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
}


def blocks_gradient(node: fx.Node) -> bool:
    """Tell whether a node passes no gradient on, though its value follows its input.

    Returns:
        True for ``detach``, rounding, signs and conversions to whole numbers, and for what only decides
        (:func:`only_decides`).
    """
    if node.op not in ("call_function", "call_method"):
        return False
    if name_of(node) in _CUT_OFF or only_decides(node):
        return True
    given = (*node.args, *node.kwargs.values())
    return any(isinstance(a, torch.dtype) and not (a.is_floating_point or a.is_complex) for a in given)


def only_decides(node: fx.Node) -> bool:
    """Tell whether a node compares, ranks or counts: what is chosen by it can be differentiated almost everywhere."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in (operator.getitem, getattr):
        source = node.args[0]
        ranked = isinstance(source, fx.Node) and name_of(source) in _WITH_INDICES
        return ranked and node.args[1] in (1, "indices")
    return name_of(node).strip("_") in _DECISIONS | {"and", "or", "not"}


def reads_only_the_shape(node: fx.Node) -> bool:
    """Tell whether a node's value depends on its input's shape and type alone, not on its numbers."""
    if node.target is getattr:
        return node.args[1] in _SHAPE_ATTRIBUTES
    return node.op in ("call_function", "call_method") and name_of(node) in _SHAPE_METHODS


def is_piecewise_linear(node: fx.Node) -> bool:
    """Tell whether a node is surely piecewise linear in its inputs (ReLU networks in eval mode consist of such)."""
    if is_batch_norm(node):
        return not uses_batch_statistics(node)
    module = module_of(node)
    if module is not None:
        return isinstance(module, _PIECEWISE_LINEAR_MODULES)
    if node.target is F.linear or node.target in CONVOLUTION_FUNCTIONS:
        return weight_of(node) is not None  # a computed kernel makes a product of two values
    if node.op == "call_method":
        return node.target in _PIECEWISE_LINEAR_METHODS
    return node.target in _PIECEWISE_LINEAR_FUNCTIONS
