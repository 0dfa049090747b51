"""The residual unit that holds a layer: where the published targets start from.

The published code feeds the pruned network's activations at the *input of the current block* (a ResNet's residual
block, a transformer's encoder block) through the dense blocks, and takes what it sees there as targets. Within a block
the dense layers before the one being solved thus make up for their pruned twins, and a layer does not learn to repeat
the errors of its neighbours (Lucas & Mazumder 2025, the authors' code; shared by the recipe "paper").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from snows_core.network.graph import Layer, Network, Segment
from snows_core.network.operations import is_addition, summands


@dataclass(frozen=True)
class Restart:
    """How to compute the targets of a segment from further up.

    Attributes:
        reads: values taken from the pruned network, all before the unit.
        nodes: what is run from them with dense weights, in order, up to the last tap.
    """

    reads: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]


def restart(network: Network, segment: Segment) -> Restart:
    """Return how the dense network reaches a segment's taps from the input of the residual unit of its layer."""
    start = unit_start(network, segment.layer)
    inside = {node for tap in segment.taps for node in _ancestors(network, tap, start)}
    reads = {source for node in inside for source in node.all_input_nodes if source in network.index} - inside
    return Restart(_in_order(network, reads), _in_order(network, inside))


def _in_order(network: Network, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    wanted = set(nodes)
    return tuple(node for node in network.nodes if node in wanted)


def unit_start(network: Network, layer: Layer) -> int:
    """Return the index of the first node of the residual unit that holds a layer; of the layer itself if none does.

    The unit is the innermost module in which a residual addition behind the layer takes place (a ResNet block, a
    transformer block with both of its additions). Where additions stand in the forward of the whole network, it
    reaches from the place where skip and branch part to the addition.
    """
    addition = _closing_addition(network, layer)
    if addition is None:
        return network.index[layer.node]
    scopes = set(_scopes(addition)) & set(_scopes(layer.node))
    module = max(scopes, key=len, default="")
    if module:
        return min(i for i, node in enumerate(network.nodes) if module in _scopes(node))
    skip, branch = (_ancestors(network, source) for source in summands(addition))
    return 1 + max(network.index[node] for node in skip & branch)


def _closing_addition(network: Network, layer: Layer) -> fx.Node | None:
    """Return the first addition behind a layer that joins its branch with a value from before it."""
    reached = {layer.node}
    for node in network.nodes[network.index[layer.node] + 1 :]:
        if reached.isdisjoint(node.all_input_nodes):
            continue
        reached.add(node)
        if is_addition(node):
            skips = [source for source in summands(node) if source not in reached]
            if len(skips) == 1 and network.image in _ancestors(network, skips[0]):
                return node
    return None


def _ancestors(network: Network, node: fx.Node, start: int = 0) -> set[fx.Node]:
    """Return a node and all that it is computed from, down to the node at index ``start``."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node not in found and network.index.get(node, -1) >= start:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _scopes(node: fx.Node) -> list[str]:
    """Return the names of the modules in whose forward a node was recorded, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [entry[0] for entry in stack.values()]
    return [name for name in names if name and name != node.target]
