"""How the channels of a value pass through one operation, and which tensors of it are in their order.

A channel is followed by its place: the axis that the channels lie along, and how many consecutive places of that axis
belong to each. An operation lets channels pass where a permutation of them before it, applied to its own tensors too,
does the same as the permutation after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.network.geometry import geometry_of
from snows_core.network.graph import Layer
from snows_core.network.nodes import attribute_at, module_of, name_of, path_of
from snows_core.network.operations import Kind, is_batch_norm, kind_of, weight_of
from snows_core.network.timm_layers import is_plain_same_padded

Shapes = Mapping[fx.Node, torch.Size]
"""Shapes of the values of a network that are tensors, for a few images."""


@dataclass(frozen=True)
class Layout:
    """Where the channels of a value lie.

    Attributes:
        axis: along which axis, from 0.
        block: consecutive places of each channel; more than one behind a flattening.
    """

    axis: int
    block: int = 1


@dataclass(frozen=True)
class Move:
    """A parameter or buffer that is in the order of the channels.

    Attributes:
        name: its qualified name.
        axis: the axis that follows the channels.
        block: consecutive places of each channel there.
    """

    name: str
    axis: int
    block: int = 1


Passed = tuple[Layout, tuple[Move, ...]]
"""Where the channels lie behind an operation, and what of its own has to move with them."""


def layer_moves(node: fx.Node, block: int = 1) -> tuple[Move, ...] | None:
    """Return what moves with the output channels of a convolution or linear layer; None where something else would.

    Args:
        node: the layer.
        block: consecutive output channels that move together.

    Returns:
        Its weight and its bias along their first axis; None for a layer that is computed from other tensors, or does
        more than its class in PyTorch.
    """
    weight, bias = weight_of(node), own_tensors(node, "bias", 2)
    if weight is None or bias is None or not _is_plain(node):
        return None
    return tuple(Move(name, 0, block) for name in (weight, *bias))


def has_groups(layer: Layer, weight: Tensor) -> bool:
    """Tell whether a layer with a ``weight`` is a convolution with groups, whose outputs belong to one of them each."""
    return weight.ndim == 4 and geometry_of(layer.node, weight).groups > 1


def reads_by_weight(layer: Layer, layout: Layout, shape: Sequence[int]) -> bool:
    """Tell whether a layer multiplies all channels of its input by the second axis of a stored weight.

    Args:
        layer: a convolution or linear layer.
        layout: where the channels lie in its input.
        shape: of its input.

    Returns:
        False for convolutions with groups, computed weights, and modules that do more than their class in PyTorch.
    """
    owner = layer.node.graph.owning_module
    if not layer.weight_name or owner is None or not _is_plain(layer.node):
        return False
    weight: Tensor = attribute_at(owner, layer.weight_name)
    axis = 1 if layer.kind is Kind.CONVOLUTION else len(shape) - 1
    return layout.axis == axis and weight.shape[1] == shape[axis]  # not so where a convolution has groups


def _is_plain(node: fx.Node) -> bool:
    """Tell whether a node is a function of PyTorch, or a module without hooks that computes what its class does."""
    module = module_of(node)
    if module is None:
        return True
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return False
    kind = type(module)
    if kind.__module__.startswith("torch.nn.") or is_plain_same_padded(module) or kind_of(node) is Kind.ACTIVATION:
        return True
    if isinstance(module, nn.Conv2d):
        own = (nn.Conv2d.forward, nn.Conv2d._conv_forward)
        return (type(module).forward, type(module)._conv_forward) == own
    return isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward


def own_tensors(node: fx.Node, name: str, place: int) -> tuple[str, ...] | None:
    """Return the name of a tensor that a node reads beside its input: none, one, or None where it is computed."""
    module = module_of(node)
    if module is not None:
        stored = module._parameters.get(name, module._buffers.get(name))
        if stored is None:
            return () if getattr(module, name, None) is None else None
        return (f"{node.target}.{name}",)
    given = node.args[place] if len(node.args) > place else node.kwargs.get(name)
    if given is None:
        return ()
    return (path_of(given),) if isinstance(given, fx.Node) and given.op == "get_attr" else None


def pass_through(node: fx.Node, layout: Layout, shapes: Shapes) -> Passed | None:
    """Return how channels pass through a node whose first argument holds them.

    Args:
        node: the operation.
        layout: where the channels lie in its first argument.
        shapes: of its first argument and of its value.

    Returns:
        Where they lie behind it, and its tensors that move with them; None where their order is bound.
    """
    module, source = module_of(node), node.args[0]
    assert isinstance(source, fx.Node)
    if node not in shapes or (module is not None and not _is_plain(node)):
        return None
    before, after = tuple(shapes[source]), tuple(shapes[node])
    if is_batch_norm(node):
        return _batch_norm(node, layout)
    if kind_of(node) is Kind.CONVOLUTION:
        return _depthwise(node, layout, before)
    if isinstance(module, nn.LayerNorm) or node.target is F.layer_norm:
        return _layer_norm(node, layout, before)
    if isinstance(module, nn.PReLU) or node.target is F.prelu:
        return _prelu(node, layout)
    if any(one is not source and (one in shapes or one.op == "get_attr") for one in node.all_input_nodes):
        return None  # sizes are no tensors
    if module is not None:
        return _module(module, node, layout, before, after)
    if kind_of(node) is Kind.ACTIVATION:
        return None if node.target is F.glu else (layout, ())
    function = _FUNCTIONS.get(name_of(node)) if node.op in ("call_function", "call_method") else None
    moved = None if function is None else function(node, layout, before, after)
    return None if moved is None else (moved, ())


def _module(
    module: nn.Module, node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]
) -> Passed | None:
    if isinstance(module, _ONE_BY_ONE) or (kind_of(node) is Kind.ACTIVATION and not isinstance(module, nn.GLU)):
        return layout, ()
    moved = None
    if isinstance(module, _POOLS):
        moved = _pooled(node, layout, before, after)
    elif isinstance(module, nn.Flatten | nn.Unflatten):
        moved = _reshaped(node, layout, before, after)
    return None if moved is None else (moved, ())


def _batch_norm(node: fx.Node, layout: Layout) -> Passed | None:
    moves = []
    for name, place in (("running_mean", 1), ("running_var", 2), ("weight", 3), ("bias", 4)):
        if (own := own_tensors(node, name, place)) is None:
            return None
        moves += [Move(one, 0, layout.block) for one in own]
    return (layout, tuple(moves)) if layout.axis == 1 else None


def _depthwise(node: fx.Node, layout: Layout, before: Sequence[int]) -> Passed | None:
    weight = weight_of(node)
    owner = node.graph.owning_module
    if weight is None or owner is None or layout.axis != 1:
        return None
    kernel: Tensor = attribute_at(owner, weight)
    groups = geometry_of(node, kernel).groups if kernel.ndim == 4 else 1
    if groups == 1 or groups != before[1]:
        return None
    block = layout.block * (len(kernel) // groups)
    moves = layer_moves(node, block)
    return None if moves is None else (Layout(1, block), moves)


def _layer_norm(node: fx.Node, layout: Layout, before: Sequence[int]) -> Passed | None:
    module = module_of(node)
    shape: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
    if isinstance(module, nn.LayerNorm):
        shape = module.normalized_shape
    moves = []
    for name, place in (("weight", 2), ("bias", 3)):
        if (own := own_tensors(node, name, place)) is None:
            return None
        moves += [Move(one, 0, layout.block) for one in own]
    fits = list(shape or ()) == [before[-1]] and layout.axis == len(before) - 1
    return (layout, tuple(moves)) if fits else None


def _prelu(node: fx.Node, layout: Layout) -> Passed | None:
    own, owner = own_tensors(node, "weight", 1), node.graph.owning_module
    if not own or owner is None:
        return None
    if attribute_at(owner, own[0]).numel() == 1:
        return layout, ()
    return (layout, (Move(own[0], 0, layout.block),)) if layout.axis == 1 else None


def _pooled(node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    """Pool over positions: images with channels first, as they came."""
    return layout if len(before) == len(after) == 4 and layout.axis == 1 else None


def _padded(node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    return layout if before[layout.axis] == after[layout.axis] else None


def _one_by_one(node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    return layout if tuple(before) == tuple(after) else None


def _reshaped(node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    """Keep the order of all numbers: channels stay together where as many numbers as before lie in front of an axis."""
    ahead, size = math.prod(before[: layout.axis]), before[layout.axis]
    for axis in range(len(after)):
        if math.prod(after[:axis]) == ahead and after[axis] % size == 0 and after[axis] >= size > 1:
            return Layout(axis, layout.block * (after[axis] // size))
    return None


def _permuted(node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    given: Any = node.args[1:] or (node.kwargs.get("dims"),)
    axes = given[0] if isinstance(given[0], tuple | list) else given
    return Layout([axis % len(before) for axis in axes].index(layout.axis), layout.block)


def _transposed(node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    if len(node.args) != 3:
        return None
    given: Any = node.args[1:]
    one, other = (int(axis) % len(before) for axis in given)
    return Layout({one: other, other: one}.get(layout.axis, layout.axis), layout.block)


def _averaged(node: fx.Node, layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    """Average over positions."""
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None:
        return None
    axes = {int(axis) % len(before) for axis in (given if isinstance(given, tuple | list) else (given,))}
    if layout.axis in axes:
        return None
    kept = len(before) == len(after)
    return Layout(layout.axis if kept else layout.axis - sum(axis < layout.axis for axis in axes), layout.block)


_ONE_BY_ONE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d)
_Function = Callable[[fx.Node, Layout, Sequence[int], Sequence[int]], Layout | None]
# Functions and methods by name, of one value of the graph and of numbers.
_FUNCTIONS: Mapping[str, _Function] = (
    dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), _pooled)
    | dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), _reshaped)
    | dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed)
    | dict.fromkeys(("mean", "sum", "amax", "amin"), _averaged)
    | {"permute": _permuted, "pad": _padded}
    | dict.fromkeys(
        ("add", "sub", "mul", "truediv", "div", "neg", "pow", "square", "sqrt", "exp", "abs", "clamp", "clip"),
        _one_by_one,
    )
    | dict.fromkeys(
        ("dropout", "dropout2d", "feature_dropout", "contiguous", "clone", "to", "float", "type_as"), _one_by_one
    )
)
