"""What the values of a graph look like (shapes, types, devices) while it is recorded, without computing their numbers.

Every recorded node is run on fake tensors (``torch._subclasses``), for two numbers of images: what is equal for both
may be used as a constant, what differs must stay a node. Numbers are never looked at, so nothing that is decided by
them is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from snows_core.network.nodes import attribute_at, called_function, path_of

COUNTS = (2, 7)  # numbers of images; what is equal for both is taken for independent of it
_SHAPE_KEEPING = {
    nn.LayerNorm,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardswish,
}
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


Pair = tuple[Any, Any]  # a fake value for each of the two numbers of images


class Shapes:
    """Fake values of the nodes of a growing graph.

    Args:
        root: the module that ``get_attr`` and ``call_module`` nodes refer to.
        image: a few images (N, ...); only shape, type and device are used.

    Attributes:
        running: true while a node is run: modules are then called as they are, not traced.
        written: node to those of its inputs that it writes into.
    """

    def __init__(self, root: nn.Module, image: Tensor) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode  # here: the import takes a while

        self.root = root
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.running = False
        self.written: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self._values: dict[fx.Node, Pair | None] = {}
        self._last: fx.Node | None = None
        with self.mode:
            shape = image.shape[1:]
            few, more = (torch.empty(n, *shape, dtype=image.dtype, device=image.device) for n in COUNTS)
        self.images: Pair = (few, more)

    def of(self, node: fx.Node) -> Pair | None:
        """Return a node's fake values for both numbers of images, or None where they cannot be told."""
        if node not in self._values:
            for other in self._pending(node):
                if other not in self._values:
                    self._values[other] = self._run(other)
                self._last = other
        return self._values[node]

    def _pending(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes not run yet, in the order of the graph, up to a given one: in-place work comes in order."""
        start = self._last
        if start is None or getattr(start, "_erased", False):
            start = node.graph._root
        while start is not node:
            start = start.next
            if start.op == "root":
                return
            yield start

    def forget(self, node: fx.Node) -> None:
        """Drop what is known of a node that is about to be erased."""
        self._values.pop(node, None)
        self.written.pop(node, None)
        if self._last is node:
            self._last = None

    def _run(self, node: fx.Node) -> Pair | None:
        """Return a node's fake values, or None where they, or those of an input, cannot be told."""
        if node.op == "placeholder":
            return self.images
        if node.op == "output":
            return None
        inputs = [self._values.get(source) for source in node.all_input_nodes]
        if any(value is None for value in inputs):
            return None
        self.running = True
        try:
            with torch.no_grad():
                return self._call(node, 0), self._call(node, 1)
        except Exception:  # whatever an operation has against fake values: they cannot be told
            return self._guess(node)
        finally:
            self.running = False

    def _call(self, node: fx.Node, i: int) -> Any:
        """Run a node on fake values of one number of images, and note into which inputs it writes."""
        args, kwargs = self._arguments(node, i)
        before = {source: _versions(self._known(source)[i]) for source in node.all_input_nodes}
        with self.mode:
            value = self._quickly(node, args)
            value = self._target(node)(*args, **kwargs) if value is None else value
        written = tuple(source for source, old in before.items() if _versions(self._known(source)[i]) != old)
        if written:
            self.written[node] = written
        return value

    def _known(self, node: fx.Node) -> Pair:
        values = self._values[node]
        assert values is not None  # what has an unknown input is not run
        return values

    def _arguments(self, node: fx.Node, i: int) -> tuple[Any, Any]:
        """Return a node's arguments, the fake values for one of the two numbers of images in the nodes' places."""
        args: Any = fx.map_arg((node.args, node.kwargs), lambda source: self._known(source)[i])
        return args

    def _quickly(self, node: fx.Node, args: tuple[Any, ...]) -> Tensor | None:
        """Return the output of the most frequent modules, whose shape is plain; None for all others."""
        module = self.root.get_submodule(path_of(node)) if node.op == "call_module" else None
        if getattr(module, "inplace", False) or len(args) != 1 or module is None or module._forward_pre_hooks:
            return None
        if type(module) is nn.Linear:
            return args[0].new_empty(*args[0].shape[:-1], module.out_features)
        return torch.empty_like(args[0]) if type(module) in _SHAPE_KEEPING else None

    def _target(self, node: fx.Node) -> Callable[..., Any]:
        """Return what a node calls, as a function of its arguments."""
        if node.op == "call_function":
            return called_function(node)
        if node.op == "call_method":
            return lambda first, *args, **kwargs: getattr(first, path_of(node))(*args, **kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(path_of(node))
        return lambda: self._attribute(path_of(node))

    def _attribute(self, target: str) -> Any:
        value = attribute_at(self.root, target)
        return self.mode.from_tensor(value) if isinstance(value, Tensor) else value

    def _guess(self, node: fx.Node) -> Pair | None:
        """Run a module that fake values cannot pass (its forward looks at numbers) on random ones, for its shapes."""
        if node.op != "call_module":
            return None
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return self._on_random_numbers(node, 0), self._on_random_numbers(node, 1)
        except Exception:
            return None

    def _on_random_numbers(self, node: fx.Node, i: int) -> Any:
        """Run a module on random numbers of its inputs' shapes; return fake values of its output's."""
        args, kwargs = self._arguments(node, i)
        args, kwargs = pytree.tree_map_only(Tensor, _random_like, (args, kwargs))
        before = _versions((args, kwargs))
        value = self.root.get_submodule(path_of(node))(*args, **kwargs)
        if _versions((args, kwargs)) != before:
            self.written[node] = tuple(node.all_input_nodes)
        return pytree.tree_map_only(Tensor, self.mode.from_tensor, value)


def _random_like(fake: Tensor) -> Tensor:
    if fake.is_floating_point():
        return torch.randn(tuple(fake.shape), dtype=fake.dtype, device=fake.device)
    return torch.zeros(tuple(fake.shape), dtype=fake.dtype, device=fake.device)


def _versions(value: Any) -> list[int]:
    return [leaf._version for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def is_constant(values: Pair | None) -> TypeGuard[Pair]:
    """Tell whether a value is plain Python (no tensor inside) and the same for both numbers of images."""
    if values is None:
        return False
    first, second = values
    if isinstance(first, tuple | list) and type(first) is type(second) and len(first) == len(second):
        return all(is_constant(pair) for pair in zip(first, second, strict=True))
    return isinstance(first, _PLAIN) and type(first) is type(second) and first == second


def storages(value: Any) -> set[int]:
    """Return the identities of the storages behind the tensors of a (fake) value."""
    return {leaf.untyped_storage()._cdata for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)}
