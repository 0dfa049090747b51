"""The torch.fx tracer of this package: it answers questions about shapes, and steps around what it cannot read.

torch.fx records what a forward pass does to one symbolic value. Python code that looks at such a value (``if
x.shape[1] != 3``, ``len(x)``, ``isinstance(x, Tensor)``) stops it. With an example these questions are answered from
fake values (:mod:`snows_core.network.shapes`); only what depends on the numbers in a tensor cannot be answered. A
module whose forward asks that is recorded as one node, unless it holds all layers of the network.
"""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from snows_core.network.answers import AnsweringTracer
from snows_core.network.arguments import positional
from snows_core.network.copies import inside_wrapper, remembered
from snows_core.network.proxies import (
    IN_PLACE,
    AskedForNumber,
    Proxy,
    Sizes,
    Undecided,
    WritesIntoBuffer,
    is_erased,
    is_symbolic,
)
from snows_core.network.recording import recorded_sizes
from snows_core.network.shapes import Shapes
from snows_core.network.spelled_out import spelled_out, spelled_out_function
from snows_core.network.timm_layers import untraced_functions, untraced_modules
from snows_core.network.writes import ORDINARY_OPERATORS, is_in_place_name

# A tensor that is no symbolic value records ``table[index] = value`` as a method of this name.
_OPERATORS = {f"__{name}__": getattr(operator, name) for name in ("setitem", "getitem", *IN_PLACE)}


class Tracer(AnsweringTracer):
    """Records a network as a graph.

    Args:
        leaves: modules not to look into: classes, qualified names, globs of names.
        holds_all: tells of a module whether it holds all layers of the network, so that it can be no leaf.
        example: a few images, or None: then nothing is known of shapes, and nothing is stepped around.

    Attributes:
        path: name of the module that is being traced; after an error the innermost one.
        refused: name of a module that could not be traced to the error that says why.
    """

    traced_func_name = "call_with_the_image"  # of the outermost module: made by snows_core.network.trace

    def __init__(
        self,
        leaves: Sequence[type[nn.Module] | str],
        holds_all: Callable[[nn.Module], bool] = lambda module: True,
        example: Tensor | None = None,
    ) -> None:
        super().__init__(autowrap_functions=untraced_functions())
        unread = [kind for kind in untraced_modules() if example is None or not _can_be_read(kind)]
        self.leaf_types = (*(leaf for leaf in leaves if not isinstance(leaf, str)), *unread)
        self.leaf_names = [leaf for leaf in leaves if isinstance(leaf, str)]
        self.holds_all, self.example = holds_all, example
        self.recorded: list[tuple[str, dict[str, Any]]] = []
        self.shapes: Shapes | None = None
        self.path = ""
        self.refused: dict[str, Exception] = {}

    def trace(  # type: ignore[override] # torch.fx takes plain functions, too; this tracer takes networks alone
        self, root: nn.Module, concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Record the forward pass of ``root``, anew where a number of images turns out to be asked for."""
        restore = remembered(root)
        while True:
            restore()
            self.path, self.refused = "", {}
            self.shapes = None if self.example is None else Shapes(root, self.example)
            self.module_stack.clear()
            try:
                with torch.no_grad(), recorded_sizes(self, self.recorded):
                    return super().trace(root, concrete_args)
            except AskedForNumber as asked:
                self.recorded.append((asked.name, asked.namespace))
            except WritesIntoBuffer:
                self.proxy_buffer_attributes = True

    def let_go(self) -> None:
        """Forget the network: what torch.fx leaves of a trace holds the tracer, and would hold all weights with it."""
        self.root, self.shapes, self.example = nn.Module(), None, None
        self.tensor_attrs, self.submodule_paths = {}, None
        self.refused.clear()  # errors, whose frames hold modules

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
        """Record a node, its tensor arguments by position; functions that hide layers are recorded part by part.

        Returns:
            Its symbolic value.

        Raises:
            WritesIntoBuffer: when it writes into a buffer for the first time.
            Undecided: when it writes into any other tensor from outside.
        """
        if kind == "call_function" and (replacement := spelled_out_function(target)) is not None:
            return replacement(*args, **kwargs)
        if kind == "call_method" and (called := _OPERATORS.get(target)) is not None:
            kind, target = "call_function", called
        if args and _is_write(kind, target) and not is_symbolic(args[0]) and isinstance(args[0], Tensor):
            if self.proxy_buffer_attributes:
                raise Undecided("in-place work on a tensor that is neither a value of the network nor a buffer")
            raise WritesIntoBuffer
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
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if any(fnmatch.fnmatchcase(module_qualified_name, name) for name in self.leaf_names):
            return True
        if spelled_out(m) is not None or inside_wrapper(m) is not None:
            return False
        if isinstance(m, self.leaf_types) or type(m).__module__.startswith("torchvision.ops.roi"):
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
        forward = _in_the_open(m, forward)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.holds_all(m):
                raise  # the innermost path stays: the message names it
            while len(self.module_stack) > depth:
                self.module_stack.popitem(last=True)
            self._take_back(before)
            path = self.path_of_module(m)
            self.refused[path] = error
            result = self.create_proxy("call_module", path, args, kwargs)
        self.path = outer
        return result

    def _take_back(self, last: fx.Node) -> None:
        """Erase the nodes that were recorded after ``last``."""
        while (node := self.graph._root.prev) is not last:
            if self.shapes is not None:
                self.shapes.forget(node)
            self.graph.erase_node(node)


def _can_be_read(kind: type[nn.Module]) -> bool:
    """Tell whether timm keeps a module from being traced for its questions about shapes alone; layers stay whole."""
    layer = any(base.__module__.startswith("torch.nn.modules") and base is not nn.Module for base in kind.__mro__)
    return kind.__module__.startswith("timm.") and not layer


def _is_write(kind: str, target: Any) -> bool:
    if kind == "call_function":
        return target in ORDINARY_OPERATORS or target is operator.setitem
    return kind == "call_method" and is_in_place_name(target)


def _in_the_open(m: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return what to run for a module: its own forward, or what stands for it; hooks included."""
    replacement = inside_wrapper(m) or spelled_out(m)
    if replacement is None or not (m._forward_pre_hooks or m._forward_hooks):
        return replacement or forward

    def with_hooks(*args: Any, **kwargs: Any) -> Any:
        m.__dict__["forward"] = replacement
        try:
            return forward(*args, **kwargs)
        finally:
            del m.__dict__["forward"]

    return with_hooks
