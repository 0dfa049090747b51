"""In-place work taken out of a graph: every value is written once, and every reader sees what it would have seen.

In PyTorch a tensor and its views (``x[:, :4]``, ``x.view(...)``, ``x.chunk(2)``) share their numbers: ``y += 1`` on a
view changes ``x`` and all its other views. Here an operation that writes is replaced by one that returns a new value;
what it wrote into, the tensor that this is a view of, and all other views of that tensor are made anew for the nodes
that read them later. Which values share numbers is read off fake tensors where there is an example
(:mod:`snows_core.network.shapes`), else told by the names of the operations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.nn import functional as F

from snows_core.network.derivatives import reads_only_the_shape
from snows_core.network.nodes import called_module, module_of, path_of
from snows_core.network.operations import hard_sigmoid
from snows_core.network.shapes import Shapes
from snows_core.network.sharing import CannotRewrite, Sharing
from snows_core.network.writes import (
    CHANGE_SHAPE,
    ORDINARY_OPERATORS,
    REFUSED,
    WriteThroughView,
    function_of,
    is_in_place_name,
    on_a_copy,
    ordinary_form,
    with_item,
)


def out_of_place(graph_module: fx.GraphModule, shapes: Shapes | None = None) -> None:
    """Rewrite a graph so that no node writes into a value that another one reads.

    Args:
        graph_module: the traced network; changed.
        shapes: fake values of its nodes.

    Raises:
        CannotRewrite: where that is not possible; the graph is then spoilt.
    """
    _Rewrite(graph_module, shapes).run()
    for node in graph_module.graph.nodes:
        if node.target is F.hardsigmoid:
            node.target = hard_sigmoid
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()


class _Rewrite(Sharing):
    """One pass over a graph, front to back, that replaces what writes."""

    def __init__(self, graph_module: fx.GraphModule, shapes: Shapes | None) -> None:
        super().__init__(graph_module.graph, shapes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.flags: list[Any] = []  # modules with a switch ``inplace``

    def run(self) -> None:
        """Replace every operation that writes, and let later readers read what they would have read."""
        if not self._is_needed():
            return
        self.find_sources()
        for node in self.nodes:
            write = self._write_of(node) if node.op.startswith("call") else None
            original = node.args[0] if node.args else None
            out = node.kwargs.get("out")
            self.read_latest(node)
            if write is not None:
                write(node, out if isinstance(out, fx.Node) else original)
            elif node.op != "get_attr":
                self.current[node] = (self.versions.get(self.owner(node), 0), node)
            if node in self.mixed:
                self.mixed[node] = {owner: self.versions.get(owner, 0) for owner in self.mixed[node]}
        for module in self.flags:
            module.inplace = False

    def _is_needed(self) -> bool:
        """Tell whether anything may write: most graphs are left as they are."""
        modules = (module_of(node) for node in self.nodes)
        foreign = any(m is not None and not type(m).__module__.startswith("torch.nn") for m in modules)
        calls = [node for node in self.nodes if node.op.startswith("call")]
        return foreign or any(self._write_of(node) is not None for node in calls)

    def _write_of(self, node: fx.Node) -> Callable[[fx.Node, Any], None] | None:
        """Return what takes the in-place work out of a node, or None where it does none."""
        if node.op == "call_function" and node.target in ORDINARY_OPERATORS:
            return self._operator
        if node.op == "call_function" and node.target is operator.setitem:
            return self._set_item
        if isinstance(node.kwargs.get("out"), fx.Node):
            return self._out
        if node.op == "call_function" and ordinary_form(node.target) is not None:
            return self._function
        if node.op == "call_method" and is_in_place_name(path_of(node)):
            return self._method
        module = module_of(node)
        if getattr(module, "inplace", False) is True:
            return self._module
        if node.kwargs.get("inplace") is True:
            return self._flag
        if self.written.get(node):
            return self._unknown
        if module is not None and self.shapes is None:
            self.flags += [inner for inner in module.modules() if getattr(inner, "inplace", False) is True]
        return None

    def _operator(self, node: fx.Node, target: Any) -> None:
        """Turn ``x += y`` into ``x + y``."""
        node.target = ORDINARY_OPERATORS[node.target]
        if isinstance(target, fx.Node) and not self._is_number(target):
            self._written(node, target)

    def _set_item(self, node: fx.Node, target: Any) -> None:
        node.target = with_item
        self._written(node, target)

    def _out(self, node: fx.Node, target: fx.Node) -> None:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
        self._written(node, target)

    def _function(self, node: fx.Node, target: Any) -> None:
        """Turn ``torch.relu_(x)`` into ``torch.relu(x)``."""
        form = ordinary_form(node.target)
        assert form is not None, node.target  # see _write_of
        node.target = form
        self._written(node, target)

    def _method(self, node: fx.Node, target: Any) -> None:
        """Turn ``x.add_(y)`` into ``x.add(y)``, and what has no such twin into a call on a copy.

        Raises:
            CannotRewrite: on methods that exchange the storage of a tensor.
        """
        name = path_of(node)
        if name in REFUSED:
            raise CannotRewrite(node, f"'{name}' changes a tensor in a way that cannot be followed")
        if name in CHANGE_SHAPE:  # the object gets another shape, the numbers stay
            node.target = name[:-1]
            self.source[node] = target
            self.current[node] = (self.versions.get(self.owner(target), 0), node)
            self.renamed |= {old: node for old in (target, *(k for k, v in self.renamed.items() if v is target))}
            return
        if hasattr(Tensor, name[:-1]):
            node.target = name[:-1]
        else:
            node.op, node.target, node.args = "call_function", on_a_copy, (node.args[0], name, *node.args[1:])
        self._written(node, target)

    def _module(self, node: fx.Node, target: Any) -> None:
        self.flags.append(called_module(node))
        self._written(node, target)

    def _flag(self, node: fx.Node, target: Any) -> None:
        node.kwargs = {**node.kwargs, "inplace": False}
        self._written(node, target)

    def _unknown(self, node: fx.Node, target: Any) -> None:
        """Give an operation that writes into its inputs copies; it must return what it wrote, or nobody read it."""
        written = self.written[node]
        returned = written == (self.source[node],) and node in self.same
        for source in written:
            latest, owner = self.latest(source, node), self.owner(source)
            later = (read for other in self.nodes[self.place[node] + 1 :] for read in other.all_input_nodes)
            if not returned and any(self.owner(read) is owner for read in later):
                raise CannotRewrite(node, f"'{node.name}' writes into a value that is read later")
            with self.graph.inserting_before(node):
                copy = self.graph.call_method("clone", (latest,))
            node.replace_input_with(latest, copy)
        if returned:
            self._written(node, written[0])

    def _is_number(self, node: fx.Node) -> bool:
        """Tell whether a value is a number or a shape: in-place work on it binds a name and changes no tensor."""
        values = self.values_of(node)
        if values is not None:
            return not isinstance(values[0], Tensor)
        argument: Any = node
        while isinstance(argument, fx.Node) and argument.target in (operator.getitem, operator.floordiv, operator.mul):
            argument = argument.args[0]
        return not isinstance(argument, fx.Node) or reads_only_the_shape(argument)

    def _written(self, node: fx.Node, target: Any) -> None:
        """Let ``node`` stand for what it wrote into, and for all that shares its numbers, from here on."""
        if not isinstance(target, fx.Node):
            return
        target = self.renamed.get(target, target)
        steps = self._steps(target)
        owner = self.owner(target)
        last = self._same_type(node, target)
        replaced = last
        if steps:
            before = self.latest(owner, node)
            arguments = [self._arguments(step, node) for step in steps]
            with self.graph.inserting_before(last.next):
                write = WriteThroughView([function_of(step) for step in steps])
                replaced = self.graph.call_function(write, (before, last, arguments))
            replaced.meta = dict(node.meta)
        version = self.versions[owner] = self.versions.get(owner, 0) + 1
        self.current[owner] = (version, replaced)
        same = target
        while same is not owner and self.is_identity(same):
            self.current[same] = (version, last)
            same = self.source[same]
        if same is not owner:
            self.current[same] = (version, last)
        self.source[node] = target
        self.current[node] = (version, last)

    def _steps(self, node: fx.Node) -> list[fx.Node]:
        """Return the views between the owner of a node's numbers and the node, in order."""
        if self.mixed.get(node):
            raise CannotRewrite(node, "a value that shares numbers with several others is written in place")
        steps = []
        while (source := self.source[node]) is not None:
            if not self.is_identity(node):
                if not self._is_view(node):
                    raise CannotRewrite(node, f"what '{node.name}' shares with its input is written in place")
                steps.append(node)
            node = source
        return steps[::-1]

    def _arguments(self, step: fx.Node, reader: fx.Node) -> tuple[Any, Any]:
        return fx.map_arg((step.args[1:], dict(step.kwargs)), lambda source: self.latest(source, reader))

    def _same_type(self, node: fx.Node, target: fx.Node) -> fx.Node:
        """Round a new value to the type of what it is written into, where the types are known to differ."""
        known = self.values_of(target)
        if known is None or not isinstance(known[0], Tensor):
            return node
        traced = (source for source in node.all_input_nodes if source in self.source)  # not made by this pass
        inputs = [value[0] for source in traced if (value := self.values_of(source)) is not None]
        if all(value.dtype == known[0].dtype for value in inputs if isinstance(value, Tensor)):
            return node
        with self.graph.inserting_after(node):
            rounded = self.graph.call_method("to", (node, known[0].dtype))
        rounded.meta = dict(node.meta)
        return rounded
