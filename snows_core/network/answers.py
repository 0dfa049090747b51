"""Answers to what a forward pass asks of its symbolic values while it is traced."""

from __future__ import annotations

import builtins
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from snows_core.network.proxies import AskedForNumber, Attribute, Proxy, Sizes, Undecided, is_erased
from snows_core.network.shapes import Pair, Shapes, is_constant

_ASKED_ATTRIBUTES = {
    "dtype",
    "ndim",
    "layout",
    "is_nested",
    "is_sparse",
    "is_quantized",
    "is_meta",
    "is_cuda",
    "is_mps",
    "is_mkldnn",
    "requires_grad",
    "is_leaf",
    "itemsize",
    "names",
}
_ASKED_METHODS = {
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "is_floating_point",
    "is_complex",
    "is_signed",
    "element_size",
    "is_inference",
    "has_names",
}


# What turns a value into the answer, where that is not the function of the same name.
_ANSWERS: dict[str, Callable[[Any], Any]] = {"index": operator.index, "len": int}


class AnsweringTracer(fx.Tracer):
    """A tracer whose symbolic values may be asked for shapes and types.

    What is the same for any number of images is answered as a plain Python value; what depends on that number stays
    symbolic; what depends on the numbers in a tensor cannot be answered.

    Attributes:
        shapes: fake values of the nodes recorded so far; None when there is no example, and no answer.
        recorded: namespaces in which ``int``, ``float`` or ``len`` has to be recorded, with that name.
    """

    shapes: Shapes | None
    recorded: list[tuple[str, dict[str, Any]]]

    def attribute(self, proxy: Proxy, name: str) -> Any:
        """Return an attribute of a symbolic value: known where it can be told, else to be recorded."""
        if self.shapes is None:
            return Attribute(proxy, name)
        if name == "shape":
            return self._sizes(Attribute(proxy, name))
        known = name in _ASKED_ATTRIBUTES or type(proxy) is Attribute or not hasattr(Tensor, name)
        if known and (values := self.shapes.of(proxy.node)) is not None and all(hasattr(v, name) for v in values):
            parts = tuple(getattr(value, name) for value in values)
            if is_constant(parts):
                return parts[0]
        return Attribute(proxy, name)

    def call_method(self, owner: fx.Proxy, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a method call; what it says about the shape is returned as a number."""
        result = self.create_proxy("call_method", name, (owner, *args), kwargs)
        if self.shapes is None or (name != "size" and name not in _ASKED_METHODS):
            return result
        return self._sizes(result) if name == "size" and not args and not kwargs else self._plain(result)

    def _known(self, proxy: fx.Proxy) -> Pair | None:
        return None if self.shapes is None else self.shapes.of(proxy.node)

    def _plain(self, proxy: fx.Proxy) -> Any:
        values = self._known(proxy)
        return values[0] if is_constant(values) else proxy

    def _sizes(self, proxy: fx.Proxy) -> Any:
        """Return the shape with numbers where they are the same for any number of images, else with symbolic values."""
        values = self._known(proxy)
        if values is None or not all(isinstance(v, torch.Size) for v in values) or len(values[0]) != len(values[1]):
            return proxy
        pairs = enumerate(zip(*values, strict=True))
        return Sizes(first if first == second else _part(proxy, i) for i, (first, second) in pairs)

    def kind_of_value(self, proxy: Proxy) -> type | None:
        """Return the Python type of what a symbolic value stands for, or None where it cannot be told."""
        if self.shapes is None or self.shapes.running or is_erased(proxy.node):
            return None
        first = (self.shapes.of(proxy.node) or (None,))[0]
        return next((kind for kind in (Tensor, bool, int, float, dict, list, tuple) if isinstance(first, kind)), None)

    def number(self, proxy: Proxy, name: str) -> Any:
        """Answer ``int(x)``, ``len(x)``, ``range(x)`` and the like.

        Args:
            proxy: the value.
            name: "int", "float", "len", or "index" (what ``range`` and slices of lists ask for).

        Returns:
            The number.

        Raises:
            Undecided: when the answer depends on the numbers in a tensor, or on how many images there are.
        """
        values = self._values(proxy, f"{name}() of a value")
        if name == "len":
            values = (len(values[0]), len(values[1]))
        elif any(isinstance(value, Tensor) for value in values):
            raise Undecided(f"{name}() of a tensor: it depends on the numbers in it")
        if is_constant(values):
            return (_ANSWERS.get(name) or getattr(builtins, name))(values[0])
        if name != "index":
            namespace = sys._getframe(2).f_globals
            if not any(namespace is known and name == other for other, known in self.recorded):
                raise AskedForNumber(name, namespace)
        raise Undecided(f"{name}() of a value that depends on the number of images")

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer ``if x:``.

        Returns:
            Which way to go.

        Raises:
            Undecided: when the answer depends on the numbers in a tensor, or on how many images there are.
        """
        values = self._values(obj, "a condition")
        if any(isinstance(value, Tensor) for value in values):
            raise Undecided("a condition that depends on the numbers in a tensor")
        first, second = (bool(value) for value in values)
        if first is not second:
            raise Undecided("a condition that depends on the number of images")
        return first

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Answer ``for y in x``: one symbolic value for each part."""
        values = self._values(obj, "a loop over a value")
        if isinstance(values[0], dict):
            return iter(values[0])
        lengths = {len(value) for value in values}
        if len(lengths) > 1:
            raise Undecided("a loop whose length depends on the number of images")
        return iter([_part(obj, i) for i in range(lengths.pop())])

    def keys(self, obj: fx.Proxy) -> Any:
        """Answer ``x.keys()`` and ``**x``."""
        values = self._values(obj, "the keys of a value")
        return values[0].keys() if isinstance(values[0], dict) else Attribute(obj, "keys")()

    def contains(self, proxy: Proxy, item: Any) -> bool:
        """Answer ``item in x``."""
        values = self._values(proxy, "a search in a value")
        if any(isinstance(value, Tensor) for value in pytree.tree_leaves(values)) and not isinstance(values[0], dict):
            raise Undecided("a search in a tensor: it depends on the numbers in it")
        return item in values[0]

    def _values(self, proxy: fx.Proxy, what: str) -> Pair:
        """Return the fake values of what was asked for.

        Raises:
            Undecided: where there are none.
        """
        values = self._known(proxy)
        if values is None:
            why = "without an example" if self.shapes is None else "its shape cannot be told"
            raise Undecided(f"{what} was asked for ({why})")
        return values


def _part(proxy: Any, i: int) -> Any:
    """Return the symbolic value of one entry; torch.fx gives its values their operators where no checker sees it."""
    return proxy[i]
