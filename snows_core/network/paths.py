"""Paths through a graph: what can be differentiated behind a layer, and whether a layer is the network's last word."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum, auto

from torch import fx

from snows_core.network.derivatives import blocks_gradient, only_decides, reads_only_the_shape
from snows_core.network.nodes import module_of, name_of
from snows_core.network.operations import Kind, is_addition, is_batch_norm, is_some_layer, kind_of, summands

_AT_THE_OUTPUT = {"sigmoid", "tanh", "softplus", "logsigmoid"}


class _Path(Enum):
    OPEN = auto()  # the gradient of this value is that of what it is
    DECIDED = auto()  # follows the layer in jumps alone: no gradient, and none is missing
    CUT = auto()  # a gradient would be wrong: a part of it is missing


def differentiable(start: fx.Node, later: Iterable[fx.Node], cut: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Return the nodes whose dependence on ``start`` its gradient tells in full.

    Behind ``detach`` or rounding there is none of it, and behind a sum of such a path and an open one only a part.
    Comparisons and indices that choose between values that can be differentiated do no harm.

    Args:
        start: a node.
        later: the nodes after it, in order.
        cut: nodes that are known to pass no gradient on.

    Returns:
        Those of ``later`` that depend on ``start``, by open paths only.
    """
    paths = {start: _Path.OPEN}
    for node in later:
        reached = {paths[source] for source in node.all_input_nodes if source in paths}
        if not reached or reads_only_the_shape(node):
            continue
        if _Path.CUT in reached:
            paths[node] = _Path.CUT
        elif _Path.OPEN not in reached or only_decides(node):
            paths[node] = _Path.DECIDED
        else:
            paths[node] = _Path.CUT if node in cut or blocks_gradient(node) else _Path.OPEN
    return {node for node, path in paths.items() if path is _Path.OPEN and node is not start}


def ancestors(node: fx.Node) -> set[fx.Node]:
    """Return every node on whose numbers a node depends, itself not included; those of which it reads the shape not."""
    found: set[fx.Node] = set()
    stack = list(node.all_input_nodes)
    while stack:
        other = stack.pop()
        if other not in found and not reads_only_the_shape(other):
            found.add(other)
            stack.extend(other.all_input_nodes)
    return found


def is_last_word(node: fx.Node, later: Sequence[fx.Node]) -> bool:
    """Tell whether a layer is a classifier: no further layer comes, and it lies in no residual unit.

    In a residual unit its output is added to a value from before it that other layers have made, so the output of the
    network is still a representation (a backbone without a head). A shortcut with a convolution of its own counts as
    such a value where an activation or normalisation follows the sum; two heads that are added up have none.

    Args:
        node: a convolution or linear layer.
        later: the nodes after it, in order.

    Returns:
        True for the last layer of a head.
    """
    reached = {node}
    additions = []
    for other in later:
        if not reached.isdisjoint(other.all_input_nodes):
            reached.add(other)
            if is_some_layer(other):
                return False
            if is_addition(other):
                additions.append(other)
    before = ancestors(node)
    return not any(_closes_a_residual_unit(addition, reached, before) for addition in additions)


def _closes_a_residual_unit(addition: fx.Node, reached: set[fx.Node], before: set[fx.Node]) -> bool:
    """Tell whether an addition joins what was reached from a layer with a representation from before it."""
    skips = [source for source in summands(addition) if source not in reached]
    if len(skips) != 1:
        return False
    skip = skips[0]
    if skip in before:
        return _comes_from_layers(skip)
    fork = ancestors(skip) & before
    return any(map(is_some_layer, fork)) and any(map(_refines, addition.users))


def _comes_from_layers(node: fx.Node) -> bool:
    return is_some_layer(node) or any(map(is_some_layer, ancestors(node)))


def _refines(node: fx.Node) -> bool:
    """Tell whether a node is an activation or normalisation as they stand between layers, not at an output."""
    kind, module = kind_of(node), module_of(node)
    name = name_of(node) if module is None else type(module).__name__.lower()
    activation = kind is Kind.ACTIVATION and name not in _AT_THE_OUTPUT
    return activation or kind is Kind.NORMALISATION or is_batch_norm(node)
