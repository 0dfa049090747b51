"""Functions that would refuse a symbolic size are recorded while a network is traced.

PyTorch's own argument parser refuses a symbolic number in ``torch.zeros(n, 3)`` before anyone can
record the call, and Python's ``int`` and ``len`` must return plain numbers.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from snows_core.network.proxies import is_symbolic

_FACTORIES = (
    "arange",
    "range",
    "zeros",
    "ones",
    "empty",
    "full",
    "eye",
    "linspace",
    "logspace",
    "rand",
    "randn",
    "randint",
    "randperm",
    "tensor",
    "as_tensor",
    "scalar_tensor",
    "tril_indices",
    "triu_indices",
    "normal",
)
_SIZED_METHODS = (
    "expand",
    "repeat",
    "view",
    "reshape",
    "tile",
    "unflatten",
    "narrow",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_tensor",
    "repeat_interleave",
)
# No method with underscores stands here: Python keeps the slot that setting one fills, even when it is deleted again.


@contextmanager
def recorded_sizes(tracer: fx.Tracer, asked: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[None]:
    """Record calls that take a symbolic size, on PyTorch's functions and tensors; all others run as ever.

    Args:
        tracer: what records.
        asked: Python's functions to be recorded, by name, and the namespaces in which they are called.
    """
    torch.overrides.get_overridable_functions()  # remembers PyTorch's functions: before they are exchanged
    with ExitStack() as stack:
        for name in _FACTORIES:
            _replace(stack, torch, name, _function(tracer, getattr(torch, name)))
        for name in _SIZED_METHODS:
            _replace(stack, Tensor, name, _method(tracer, name, getattr(Tensor, name)))
        for name, namespace in asked:
            before = namespace.get(name)
            stack.callback(*((namespace.__setitem__, name, before) if name in namespace else (namespace.pop, name)))
            namespace[name] = _builtin(tracer, name)
        yield


def _replace(stack: ExitStack, owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Exchange an attribute until the stack is left."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, function)
    stack.callback(*((setattr, owner, name, before) if own else (delattr, owner, name)))


def _function(tracer: fx.Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is recorded where it is given a symbolic value, and called where not."""

    def record(*args: Any, **kwargs: Any) -> Any:
        if is_symbolic(args, kwargs):
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return record


def _method(tracer: fx.Tracer, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of tensors that is recorded where it is given a symbolic value, and called where not."""

    def record(owner: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_symbolic(args, kwargs):
            return method(owner, *args, **kwargs)
        return tracer.create_proxy("call_method", name, (owner, *args), kwargs)

    return record


def _builtin(tracer: fx.Tracer, name: str) -> Any:
    """Return a twin of ``int``, ``float`` or ``len`` that is recorded; types stay types for ``isinstance``."""
    plain, record = getattr(builtins, name), _function(tracer, getattr(builtins, name))
    if not isinstance(plain, type):
        return record

    class Meta(type):
        def __call__(cls, *args: Any) -> Any:
            return record(*args)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, plain)

    return Meta(name, (), {})
