"""Who shares numbers with whom in a graph, and which node stands for each value after it was written into."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from snows_core.network.nodes import path_of
from snows_core.network.shapes import Shapes, storages
from snows_core.network.writes import CHANGE_SHAPE, is_same, is_view, writes


class CannotRewrite(Exception):
    """In-place work that cannot be taken out of a graph; ``node`` is where."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


class Sharing:
    """The values of a graph by the numbers that they share, as the graph is gone through front to back.

    Which values share numbers is read off fake tensors where there is an example, else told by the names of the
    operations.

    Args:
        graph: the graph as it was traced.
        shapes: fake values of its nodes, or None.

    Attributes:
        written: nodes that were seen to write into their inputs, and into which of them.
        source: maps a node to the one whose numbers it shares; None where it has numbers of its own.
        same: nodes that return their source itself.
        mixed: nodes that share the numbers of several others, with how often those had been written by then.
        versions: how often numbers were written, by the node that owns them.
        current: maps a node to (version, the node that stands for it since).
        renamed: tensors whose shape was changed in place, and the node that they are now.
    """

    def __init__(self, graph: fx.Graph, shapes: Shapes | None) -> None:
        self.graph, self.shapes = graph, shapes
        self.written: Mapping[fx.Node, tuple[fx.Node, ...]] = {} if shapes is None else shapes.written
        self.nodes = list(graph.nodes)
        self.writers = {node for node in self.nodes if node.op.startswith("call") and writes(node)}
        self.source: dict[fx.Node, fx.Node | None] = {}
        self.same: set[fx.Node] = set()
        self.mixed: dict[fx.Node, dict[fx.Node, int]] = {}
        self.versions: dict[fx.Node, int] = {}
        self.current: dict[fx.Node, tuple[int, fx.Node]] = {}
        self.renamed: dict[fx.Node, fx.Node] = {}

    def find_sources(self) -> None:
        """Find out for every node whose numbers it shares."""
        first: dict[str, fx.Node] = {}
        for node in self.nodes:
            if node.op == "get_attr":
                known = first.setdefault(path_of(node), node)
                self.source[node] = None if known is node else known
                continue
            found = self._sources_of(node)
            owners = {self.owner(source) for source in found}
            if len(owners) > 1 and node not in self.writers:
                self.mixed[node] = dict.fromkeys(owners, 0)
            self.source[node] = found[0] if found else None

    def _sources_of(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs with which a node shares numbers."""
        if not node.op.startswith("call"):
            return []
        values = self.values_of(node)
        if values is not None:
            own = storages(values[0])
            inputs = [(source, self.values_of(source)) for source in node.all_input_nodes]
            found = [(source, value) for source, value in inputs if value is not None and own & storages(value[0])]
            if found and node.target not in CHANGE_SHAPE and _is_one(values, found[0][1]):
                self.same.add(node)
            return [source for source, _ in found]
        first = node.args[0] if node.args else None
        return (
            [first] if isinstance(first, fx.Node) and (node in self.writers or is_view(node) or is_same(node)) else []
        )

    def values_of(self, node: fx.Node) -> tuple[Any, Any] | None:
        """Return a node's fake values for both numbers of images, or None where they cannot be told."""
        return None if self.shapes is None else self.shapes.of(node)

    def owner(self, node: fx.Node) -> fx.Node:
        """Return the node whose numbers a node shows."""
        while (source := self.source[node]) is not None:
            node = source
        return node

    def read_latest(self, node: fx.Node) -> None:
        """Lead a node to what its inputs are by now."""
        for source in list(node.all_input_nodes):
            latest = self.latest(self.renamed.get(source, source), node)
            if latest is not source:
                node.replace_input_with(source, latest)

    def latest(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """Return the node that now stands for the value of ``node``, made before ``reader`` where there is none yet."""
        version = self.versions.get(self.owner(node), 0)
        for owner, old in self.mixed.get(node, {}).items():
            if self.versions.get(owner, 0) != old:
                raise CannotRewrite(reader, "a value that shares numbers with several others was written in place")
        known, standing = self.current.get(node, (0, node))
        if known == version:
            return standing
        source = self.source[node]
        assert source is not None  # whoever owns numbers is entered in ``current`` whenever they are written
        base = self.latest(source, reader)
        one = node.op == "get_attr" or node in self.writers or node in self.same
        standing = base if one else self._again(node, base, reader)
        self.current[node] = (version, standing)
        return standing

    def _is_view(self, node: fx.Node) -> bool:
        taken_out = self.shapes is not None and node.target is operator.getitem  # with an example it is known to share
        return taken_out or is_view(node)

    def _shows_only(self, node: fx.Node) -> bool:
        """Tell whether a function that nobody looked into returns a view of its input and nothing else."""
        values = self.values_of(node) if node.op == "call_function" else None
        return values is not None and isinstance(values[0], Tensor)

    def is_identity(self, node: fx.Node) -> bool:
        """Tell whether a node shows all numbers of its source, in the same shape."""
        return node.op == "get_attr" or node in self.writers or node in self.same or is_same(node)

    def _again(self, node: fx.Node, base: fx.Node, reader: fx.Node) -> fx.Node:
        """Record a view once more, of what its source is now."""
        if not (self._is_view(node) or is_same(node) or self._shows_only(node)):
            raise CannotRewrite(reader, f"a value that '{node.name}' shares with its input was written in place")
        with self.graph.inserting_before(reader):
            copy = self.graph.create_node(node.op, node.target, (base, *node.args[1:]), dict(node.kwargs))
        copy.meta = dict(node.meta)
        return copy


def _is_one(values: tuple[Any, Any], others: tuple[Any, Any]) -> bool:
    """Tell whether tensors that share a storage are the same view of it, for both numbers of images."""
    return all(
        isinstance(value, Tensor) and isinstance(other, Tensor) and _view_of(value) == _view_of(other)
        for value, other in zip(values, others, strict=True)
    )


def _view_of(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.storage_offset(), value.dtype
