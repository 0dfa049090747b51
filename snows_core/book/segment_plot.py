"""The segment of one layer as a row of boxes: which operations are run again, and compared, while it is solved."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import fx

from snows_core.errors import closest, invalid_argument
from snows_core.network import Kind, Network, tap_of

STATES = {
    "compared": ("#0072b2", "run and compared"),
    "run": ("#56b4e9", "run"),
    "beside": ("#e69f00", "run once, independent of the layer"),
    "outside": ("#dddddd", "not looked at"),
}
"""State of an operation to the colour of its box and to what the legend says."""

_ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}
_ARROW = {"arrowstyle": "->", "color": "#7f7f7f"}
_RAISED = 1.3  # how far above the row a convolution on a shortcut stands


def draw_segment(ax: Axes, network: Network, layer: str, k: int, count: int = 30) -> Axes:
    """Draw a layer and what follows it in execution order, coloured by what the K-step loss does with it.

    Boxes are the operations that K counts and, as "+", the additions of shortcuts; arcs are the shortcuts. An operation
    that lies on a shortcut stands above the row.

    Args:
        ax: axes to draw on.
        network: the traced network.
        layer: name of the layer that the row begins with.
        k: operations behind it that its loss looks at.
        count: at most so many boxes.

    Returns:
        The same axes.

    Raises:
        SnowsError: on a layer that the network does not have.
    """
    names = {found.name: found for found in network.layers}
    if layer not in names:
        raise invalid_argument("layer", layer, "a layer of the network", closest(layer, names))
    segment = network.segment(names[layer], k)
    counted = {tap_of(node): node for node in network.kinds}  # where an operation is observed -> the operation
    compared = {counted[tap] for tap in segment.taps}
    behind = network.nodes[network.index[names[layer].node] :]
    shown = [node for node in behind if node in network.kinds or node.target is operator.add][:count]
    place = _places(network, shown)
    for node, (x, y) in place.items():
        beside = "beside" if node in segment.prelude else "outside"
        state = "compared" if node in compared else "run" if node in segment.nodes else beside
        ax.add_patch(Rectangle((x - 0.44, y - 0.5), 0.88, 1, color=STATES[state][0]))
        dark = "white" if state == "compared" else "black"
        ax.text(x, y, _label(network, node), rotation=90, ha="center", va="center", fontsize=8, color=dark)
        _draw_arcs(ax, [_origin(network, source, place, shown[0]) for source in node.all_input_nodes], node, x, y)
    top = 2.0 if any(y for _, y in place.values()) else 0.9
    ax.set(xlim=(-1.6, count - 0.4), ylim=(-2.0, top), yticks=[], xticks=[], title=f"{layer}, K = {k}")
    ax.set_frame_on(False)
    return ax


def segment_legend(figure: Figure, states: Sequence[str] = tuple(STATES)) -> Figure:
    """Explain the colours of :func:`draw_segment` below a figure.

    Args:
        figure: with the rows.
        states: keys of ``STATES`` that occur in it.

    Returns:
        The same figure.
    """
    boxes = [Rectangle((0, 0), 1, 1, color=STATES[state][0]) for state in states]
    figure.legend(boxes, [STATES[state][1] for state in states], ncols=len(states), loc="outside lower center")
    return figure


def _label(network: Network, node: fx.Node) -> str:
    kind, target = network.kinds.get(node), str(node.target)
    if kind is None:
        return "+"
    if kind is Kind.CONVOLUTION and node.op == "call_module":
        height, width = network.module.get_parameter(f"{target}.weight").shape[-2:]
        return f"{height} × {width}"
    if kind is Kind.ACTIVATION:
        module = node.op == "call_module"
        word = (
            type(network.module.get_submodule(target)).__name__ if module else getattr(node.target, "__name__", target)
        )
        return _ACTIVATIONS.get(word.lower(), word)
    return {Kind.ATTENTION: "att", Kind.NORMALISATION: "norm"}.get(kind, target.rsplit(".", 1)[-1])


def _origin(
    network: Network, node: fx.Node, place: dict[fx.Node, tuple[int, float]], first: fx.Node
) -> tuple[int, float]:
    """Return where the box stands that a value comes from; x is -1 for what lies before the first one."""
    while node not in place and network.index.get(node, 0) > network.index[first]:
        node = node.all_input_nodes[0]
    return place.get(node, (-1, 0.0))


def _places(network: Network, shown: Sequence[fx.Node]) -> dict[fx.Node, tuple[int, float]]:
    """Return x and y of each box: raised is what reads neither its neighbour in the row nor several values."""
    place: dict[fx.Node, tuple[int, float]] = {}
    last = -1  # x of the last box in the row itself
    for x, node in enumerate(shown):
        from_neighbour = x == 0 or _origin(network, node.all_input_nodes[0], place, shown[0])[0] == last
        in_row = from_neighbour or node.target is operator.add
        place[node] = (x, 0.0 if in_row else _RAISED)
        last = x if in_row else last
    return place


def _draw_arcs(ax: Axes, before: Sequence[tuple[int, float]], node: fx.Node, x: int, y: float) -> None:
    def arc(begin: tuple[float, float], end: tuple[float, float], bend: float) -> None:
        ax.annotate("", end, begin, arrowprops=_ARROW | {"connectionstyle": f"arc3,rad={bend}"})

    if y > 0:  # an operation on a shortcut: from the block's input up to it
        arc((before[0][0], 0.5), (x - 0.44, y), -0.25)
    elif node.target is operator.add:
        nearest = max(point for point in before if point[1] == 0)  # the box right before
        for point in before:
            if point[1] > 0:
                arc((point[0] + 0.44, point[1]), (x, 0.5), -0.25)
            elif point != nearest:
                arc((point[0], -0.5), (x, -0.5), 0.18)
