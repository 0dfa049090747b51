"""Which operations write into a tensor, which ones show a part of one, and forms of them that write nowhere."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.network.nodes import called_function, called_module, module_of, name_of, path_of

ORDINARY_OPERATORS = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "xor", "lshift", "rshift")
} | {operator.iand: operator.and_, operator.ior: operator.or_}
_VIEWS = {
    "view",
    "view_as",
    "reshape",
    "reshape_as",
    "flatten",
    "unflatten",
    "transpose",
    "permute",
    "chunk",
    "split",
    "split_with_sizes",
    "tensor_split",
    "hsplit",
    "vsplit",
    "dsplit",
    "narrow",
    "select",
    "squeeze",
    "unsqueeze",
    "expand",
    "expand_as",
    "broadcast_to",
    "unbind",
    "unfold",
    "diagonal",
    "movedim",
    "moveaxis",
    "swapaxes",
    "swapdims",
    "adjoint",
    "t",
    "T",
    "mT",
    "H",
    "mH",
    "ravel",
    "getitem",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "detach",
    "data",
}
_SAME = {"contiguous", "to", "type_as", "type", "float", "double", "alias", "dropout", "requires_grad_", "cpu", "cuda"}
_SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_VIEW_MODULES = (nn.Flatten, nn.Unflatten)
CHANGE_SHAPE = {"unsqueeze_", "squeeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "detach_"}
REFUSED = {"resize_", "resize_as_", "set_", "as_strided_"}


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of ``x`` in which ``x[index] = value``."""
    copy = x.clone()
    copy[index] = value
    return copy


def on_a_copy(x: Tensor, method: str, *args: Any, **kwargs: Any) -> Tensor:
    """Return a copy of ``x`` on which an in-place method without an ordinary form was called."""
    copy = x.clone()
    getattr(copy, method)(*args, **kwargs)
    return copy


class WriteThroughView:
    """A tensor with one of its views replaced: a function of the tensor, the new view, and the views' arguments.

    Args:
        steps: from the tensor to its view, the operations that lead there.
    """

    __name__ = "write_through_view"
    __module__ = __name__

    def __init__(self, steps: Sequence[Callable[..., Any]]) -> None:
        self.steps = tuple(steps)

    def __call__(self, base: Tensor, value: Tensor, arguments: Sequence[tuple[Any, Any]]) -> Tensor:
        """Return ``base`` with the entries that the view shows replaced by ``value``, of the view's shape."""
        places: Any = torch.arange(base.numel(), device=base.device).view(base.shape)
        for step, (args, kwargs) in zip(self.steps, arguments, strict=True):
            places = step(places, *args, **kwargs)
        flat = base.reshape(-1).index_put((places.reshape(-1),), value.to(base.dtype).reshape(-1))
        return flat.view(base.shape)


def function_of(view: fx.Node) -> Callable[..., Any]:
    """Return what a node calls, as a function of its arguments."""
    if view.op == "call_module":
        return called_module(view)
    return called_function(view) if view.op == "call_function" else getattr(Tensor, path_of(view))


def is_view(node: fx.Node) -> bool:
    """Tell whether a node shows the numbers of its first argument in another shape, or a part of them."""
    if node.op == "call_module":
        return isinstance(module_of(node), _VIEW_MODULES)
    if node.op == "call_function" and node.target is operator.getitem:
        parts = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return all(part is None or part is ... or isinstance(part, int | slice | str) for part in parts)
    return name_of(node) in _VIEWS


def is_same(node: fx.Node) -> bool:
    """Tell whether a node may return its first argument itself, not a copy."""
    if node.op == "call_module":
        return isinstance(module_of(node), _SAME_MODULES)
    return name_of(node) in _SAME


def writes(node: fx.Node) -> bool:
    """Tell whether a node returns what it writes into."""
    if node.op == "call_module":
        return getattr(module_of(node), "inplace", False) is True
    if node.op == "call_method":
        return is_in_place_name(path_of(node)) and node.target not in CHANGE_SHAPE
    in_place = node.target in ORDINARY_OPERATORS or ordinary_form(node.target) is not None
    return node.op == "call_function" and (in_place or node.kwargs.get("inplace") is True or "out" in node.kwargs)


def is_in_place_name(name: str) -> bool:
    """Tell whether a method of tensors changes the tensor that it is called on."""
    return name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name) and name != "requires_grad_"


def ordinary_form(function: Any) -> Callable[..., Any] | None:
    """Return the out-of-place twin of an in-place function such as ``torch.relu_``; None for any other function."""
    name = getattr(function, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    for home in (torch, F):
        if getattr(home, name, None) is function:
            return getattr(home, name[:-1], None)
    return None
