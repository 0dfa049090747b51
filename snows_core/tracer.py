"""The torch.fx tracer of this package: it answers questions about shapes, and steps around what it cannot read.

torch.fx records what a forward pass does to one symbolic value. Python code that looks at such a value (``if
x.shape[1] != 3``, ``len(x)``, ``isinstance(x, Tensor)``) stops it. With an example these questions are answered from
fake values (:mod:`snows_core.shapes`); only what depends on the numbers in a tensor cannot be answered. A module whose
forward asks that is recorded as one node, unless it holds all layers of the network.
"""

from __future__ import annotations

import builtins
import fnmatch
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torchvision import ops as vision_ops

from snows_core.arguments import positional
from snows_core.copies import inside_wrapper
from snows_core.proxies import AskedForNumber, Attribute, Proxy, Sizes, Undecided, is_erased
from snows_core.recording import recorded_sizes
from snows_core.shapes import Shapes, is_constant
from snows_core.spelled_out import spelled_out, spelled_out_function

_ASKED_ATTRIBUTES = {
    "dtype", "ndim", "layout", "is_nested", "is_sparse", "is_quantized", "is_meta", "is_cuda", "is_mps", "is_mkldnn",
    "requires_grad", "is_leaf", "itemsize", "names",
}  # fmt: skip
_ASKED_METHODS = {
    "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_complex", "is_signed", "element_size",
    "is_inference", "has_names",
}  # fmt: skip


class Tracer(fx.Tracer):
    """Records a network as a graph.

    Args:
        leaves: modules not to look into: classes, qualified names, globs of names.
        holds_all: tells of a module whether it holds all layers of the network, so that it can be no leaf.
        example: a few images, or None: then nothing is known of shapes, and nothing is stepped around.

    Attributes:
        path: name of the module that is being traced; after an error the innermost one.
        refused: name of a module that could not be traced to the error that says why.
        recorded: namespaces in which ``int``, ``float`` or ``len`` has to be recorded, with that name.
    """

    def __init__(
        self,
        leaves: Sequence[type[nn.Module] | str],
        holds_all: Callable[[nn.Module], bool] = lambda module: True,
        example: Tensor | None = None,
    ) -> None:
        super().__init__(autowrap_functions=tuple(f for f in get_notrace_functions() if callable(f)))
        self.leaf_types = tuple(leaf for leaf in leaves if not isinstance(leaf, str)) + tuple(get_notrace_modules())
        self.leaf_names = [leaf for leaf in leaves if isinstance(leaf, str)]
        self.holds_all, self.example = holds_all, example
        self.recorded: list[tuple[str, dict[str, Any]]] = []
        self.shapes: Shapes | None = None
        self.path = ""
        self.refused: dict[str, Exception] = {}

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Record the forward pass of ``root``, anew where a number of images turns out to be asked for."""
        while True:
            self.path, self.refused = "", {}
            self.shapes = None if self.example is None else Shapes(root, self.example)
            self.module_stack.clear()
            try:
                with torch.no_grad(), recorded_sizes(self, self.recorded):
                    return super().trace(root, concrete_args)
            except AskedForNumber as asked:
                self.recorded.append((asked.name, asked.namespace))

    # --- what torch.fx asks of a tracer

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the symbolic value of a node."""
        return Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Turn a value into an argument of a node."""
        if issubclass(type(a), fx.Proxy):
            return a.node
        return super().create_arg(tuple(a) if type(a) is Sizes else a)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """Record a node, its tensor arguments by position; functions that hide layers are recorded part by part."""
        if kind == "call_function" and (replacement := spelled_out_function(target)) is not None:
            return replacement(*args, **kwargs)
        args, kwargs = positional(self.root if hasattr(self, "root") else None, kind, target, args, kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a module's attribute; a parameter as a symbolic value."""
        if self.shapes is not None and self.shapes.running:
            return attr_val
        for name in [name for name, proxy in parameter_proxy_cache.items() if is_erased(proxy.node)]:
            del parameter_proxy_cache[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is recorded as one node."""
        if any(fnmatch.fnmatchcase(module_qualified_name, name) for name in self.leaf_names):
            return True
        if spelled_out(m) is not None or inside_wrapper(m) is not None:
            return False
        if isinstance(m, self.leaf_types) or type(m).__module__.startswith(vision_ops.__name__ + ".roi"):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a module: its parts, or one node where it is a leaf or cannot be traced."""
        if self.shapes is not None and self.shapes.running:
            return forward(*args, **kwargs)
        outer, self.path = self.path, self.path_of_module(m)
        before, depth = self.graph._root.prev, len(self.module_stack)
        forward = inside_wrapper(m) or spelled_out(m) or forward
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if not self._can_step_around(m):
                raise  # the innermost path stays: the message names it
            while len(self.module_stack) > depth:
                self.module_stack.popitem(last=True)
            self._take_back(before)
            path = self.path_of_module(m)
            self.refused[path] = error
            result = self.create_proxy("call_module", path, args, kwargs)
        self.path = outer
        return result

    def _can_step_around(self, module: nn.Module) -> bool:
        return not self.holds_all(module)

    def _take_back(self, last: fx.Node) -> None:
        """Erase the nodes that were recorded after ``last``."""
        while (node := self.graph._root.prev) is not last:
            if self.shapes is not None:
                self.shapes.forget(node)
            self.graph.erase_node(node)

    # --- questions about symbolic values

    def attribute(self, proxy: Proxy, name: str) -> Any:
        """Return an attribute of a symbolic value: known where it can be told, else to be recorded."""
        if self.shapes is None:
            return Attribute(proxy, name)
        if name == "shape":
            return self._sizes(Attribute(proxy, name))
        known = name in _ASKED_ATTRIBUTES or isinstance(proxy, Attribute) or not hasattr(Tensor, name)
        if known and (values := self.shapes.of(proxy.node)) is not None and all(hasattr(v, name) for v in values):
            parts = tuple(getattr(value, name) for value in values)
            if is_constant(parts):
                return parts[0]
        return Attribute(proxy, name)

    def call_method(self, owner: Proxy, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a method call; what it says about the shape is returned as a number."""
        result = self.create_proxy("call_method", name, (owner, *args), kwargs)
        if self.shapes is None or (name != "size" and name not in _ASKED_METHODS):
            return result
        return self._sizes(result) if name == "size" and not args and not kwargs else self._plain(result)

    def _plain(self, proxy: Proxy) -> Any:
        values = self.shapes.of(proxy.node)
        return values[0] if is_constant(values) else proxy

    def _sizes(self, proxy: Proxy) -> Any:
        values = self.shapes.of(proxy.node)
        if values is None or not all(isinstance(v, torch.Size) for v in values) or len(values[0]) != len(values[1]):
            return proxy
        pairs = enumerate(zip(*values, strict=True))
        return Sizes(first if first == second else proxy[i] for i, (first, second) in pairs)

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
            values = tuple(len(value) for value in values)
        elif any(isinstance(value, Tensor) for value in values):
            raise Undecided(f"{name}() of a tensor: it depends on the numbers in it")
        if is_constant(values):
            return {"index": operator.index, "len": int}.get(name, getattr(builtins, name, None))(values[0])
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
        return iter([obj[i] for i in range(lengths.pop())])

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

    def _values(self, proxy: fx.Proxy, what: str) -> tuple[Any, Any]:
        values = None if self.shapes is None else self.shapes.of(proxy.node)
        if values is None:
            why = "without an example" if self.shapes is None else "its shape cannot be told"
            raise Undecided(f"{what} was asked for ({why})")
        return values
