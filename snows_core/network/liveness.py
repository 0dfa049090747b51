"""Liveness: which value is read for the last time where, so that each is held no longer than somebody needs it.

This is the one place that keeps track of last uses, be it of a whole network (``Network.liveness``), of a stretch of
it that is run once, or of a folded segment, whose steps read other values than the graph says.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from operator import attrgetter
from typing import Any

from torch import fx

Reads = Callable[[fx.Node], Iterable[fx.Node]]


def last_places(reads: Iterable[tuple[int, Iterable[fx.Node]]]) -> dict[fx.Node, int]:
    """Return for every value the last place at which it is read.

    Args:
        reads: pairs of a place and the values that are read there, places in rising order.

    Returns:
        Value to place.
    """
    return {value: place for place, values in reads for value in values}


class Liveness:
    """The last uses of values in a sequence of nodes that run one after the other.

    Args:
        nodes: the nodes in the order in which they run.
        keep: values that are needed behind the last node, for instance outputs.
        reads: maps a node to the values that it reads; by default its inputs in the graph.

    Attributes:
        last_use: value to the place in ``nodes`` of its last reader. It is ``len(nodes)`` for a value to be kept, and
            the value's own place where nobody reads it.
    """

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        keep: Iterable[fx.Node] = (),
        reads: Reads = attrgetter("all_input_nodes"),
    ) -> None:
        end = len(nodes)
        self.last_use = last_places((place, (node, *reads(node))) for place, node in enumerate(nodes))
        self.last_use.update(dict.fromkeys(keep, end))
        self._done: dict[fx.Node, list[fx.Node]] = {}
        for value, place in self.last_use.items():
            if place < end:
                self._done.setdefault(nodes[place], []).append(value)

    def is_read_from(self, place: int, value: fx.Node) -> bool:
        """Tell whether a value that exists already is read by the node at ``place`` or behind it."""
        return self.last_use.get(value, -1) >= place

    def drop(self, values: dict[fx.Node, Any], node: fx.Node, keep: Container[fx.Node] = ()) -> None:
        """Remove the values that nobody reads any more once a node has run.

        Args:
            values: what is known, changed in place.
            node: the node that has run.
            keep: values that stay all the same.
        """
        for value in self._done.get(node, ()):
            if value not in keep:
                values.pop(value, None)
