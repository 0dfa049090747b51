"""Keyword arguments of recorded calls, put into the places where positional ones would stand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.operator_schemas import get_signature_for_torch_op

_METHOD_ORDERS = (("other",), ("mat2",), ("batch2",), ("tensor2",), ("mask", "value"), ("source",))


def called_as(original: Callable[..., Any], function: Callable[[SimpleNamespace], Any]) -> Callable[..., Any]:
    """Return a function that is called as ``original`` is, and hands its arguments on by name.

    Args:
        original: says how it is called: names, order, defaults.
        function: takes one namespace, with every argument of ``original``.
    """
    signature = inspect.signature(original)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return function(SimpleNamespace(**given.arguments))

    return call


def positional(
    root: nn.Module | None, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move tensors given by keyword to their positions: ``conv(input=x)`` becomes ``conv(x)``.

    Args:
        root: the module that ``target`` names a part of, for ``call_module``.
        kind: of the node to be: "call_module", "call_function", "call_method" or another.
        target: its target.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        Positional and keyword arguments of the same call; what is no tensor and comes behind all tensors stays as it
        was given.
    """
    if kwargs and any(map(_is_tensor, kwargs.values())):
        for names in _orders(root, kind, target):
            if {name for name, value in kwargs.items() if _is_tensor(value)} <= set(names[len(args) :]):
                return _moved(names, args, kwargs)
    return args, kwargs


def _moved(
    names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move the arguments up to the last tensor to the places that their names have in ``names``."""
    placed, kwargs = list(args), dict(kwargs)
    tensors_until = max(i for i, name in enumerate(names) if _is_tensor(kwargs.get(name)))
    while len(placed) <= tensors_until and names[len(placed)] in kwargs:
        placed.append(kwargs.pop(names[len(placed)]))
    return tuple(placed), kwargs


def _orders(root: nn.Module | None, kind: str, target: Any) -> Iterator[tuple[str, ...]]:
    """Yield the possible orders of a call's arguments, keyword-only ones left out."""
    if kind == "call_module" and root is not None:
        yield from _names_of(inspect.signature(root.get_submodule(target).forward))
    elif kind == "call_function":
        yield from _orders_of_function(target)
    elif kind == "call_method":
        yield from (("self", *names) for names in _METHOD_ORDERS)


def _names_of(signature: inspect.Signature) -> Iterator[tuple[str, ...]]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    yield tuple(name for name, parameter in signature.parameters.items() if parameter.kind in kinds)


@cache
def _orders_of_function(function: Callable[..., Any]) -> tuple[tuple[str, ...], ...]:
    """Return the orders in which a function may take its arguments; none where Python cannot tell."""
    signatures = get_signature_for_torch_op(function)
    if not signatures:
        try:
            signatures = [inspect.signature(function)]
        except (ValueError, TypeError):
            signatures = []
    return tuple(names for signature in signatures for names in _names_of(signature))


def _is_tensor(value: Any) -> bool:
    if type(value) in (list, tuple):
        return any(map(_is_tensor, value))
    return issubclass(type(value), fx.Proxy | Tensor)
