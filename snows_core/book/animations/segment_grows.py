"""The segment behind a layer grows with K: which operations are computed and compared, and what enters from before.

The network is the shipped ResNet-20 as the package traces it, and each frame is what ``Network.segment`` answers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch
from torch import fx

from snows_core.book.animations.encode import BLUE, GREEN, ORANGE, Animation
from snows_core.network import Kind, Network, Segment, tap_of
from snows_core.zoo import experiment

LAYER, FAR, BEFORE, SHOWN = "layer1.1.conv2", 10, 3, 17
"""The layer, the largest K, and how many operations are drawn: before the layer, and in all."""

KEYS = (1, 2, 3, 6, 8, 0)

RUN, OUTSIDE = "#b9dcf2", "#eeeeee"
FILLS = {"layer": ORANGE, "compared": BLUE, "computed": RUN, "enters": "#bfe6da", "outside": OUTSIDE}
"""What a box is, and its colour."""


@dataclass(frozen=True)
class Growth:
    """The operations that are drawn, in order, and a segment for each K.

    Attributes:
        network: the traced network.
        nodes: convolutions, activations and additions around the layer, in the order in which they are computed.
        segments: for K = 0 to ``FAR``.
    """

    network: Network
    nodes: Sequence[fx.Node]
    segments: Sequence[Segment]

    def source(self, node: fx.Node) -> fx.Node:
        """Return the operation whose value a node hands on: itself, or what a batch norm reads."""
        while node not in self.nodes and node.op != "placeholder" and node not in self.network.kinds:
            node = node.all_input_nodes[0]
        return node

    def state(self, node: fx.Node, k: int) -> str:
        """Return what a node is to the segment of that K: a key of ``FILLS``."""
        segment = self.segments[k]
        if node is segment.layer.node:
            return "layer"
        if tap_of(node) in segment.taps:
            return "compared"
        if node in segment.nodes:
            return "computed"
        return "enters" if node in self.entering(k) else "outside"

    def entering(self, k: int) -> list[fx.Node]:
        """Return the operations whose values the segment reads from outside, apart from the layer's input."""
        segment = self.segments[k]
        first = segment.layer.node.all_input_nodes[0]
        return [self.source(node) for node in segment.context if node is not first]


def compute() -> Growth:
    """Trace the network and cut out the segments."""
    network = Network(experiment("digits-resnet20").load_model().eval())
    drawn = [node for node in network.nodes if node in network.kinds or node.target is operator.add]
    layer = next(layer for layer in network.layers if layer.name == LAYER)
    begin = drawn.index(layer.node) - BEFORE
    return Growth(network, drawn[begin : begin + SHOWN], [network.segment(layer, k) for k in range(FAR + 1)])


def animate(growth: Growth) -> Animation:
    """Draw one frame a K, the largest first."""
    order = [FAR, *range(FAR)]
    return Animation([_frame(growth, k) for k in order], [3.0, *[1.1] * FAR], KEYS)


def _frame(growth: Growth, k: int) -> Figure:
    figure = Figure(figsize=(6.4, 2.7))
    ax = figure.add_axes((0, 0, 1, 1))
    places = _places(growth)
    end = max(x for x, _ in places.values())
    ax.set(xlim=(-0.6, end + 0.6), ylim=(-2.3, 4.6))
    ax.axis("off")
    for node, (x, y) in places.items():
        _box(ax, growth, node, (x, y), k)
        _arrows(ax, growth, node, places, k)
    entering = len(growth.entering(k))
    said = f"{k + 1} activation{'s' * (k > 0)} compared"
    said += f", {entering} value from before the layer enters" if entering else ""
    ax.text(end / 2, 4.1, f"$K={k}$: {said}", ha="center", va="center", size=12.5)
    words = {"layer": "layer $l$, compared", "compared": "compared", "computed": "computed only", "enters": "enters"}
    handles = [Patch(color=FILLS[state], label=text) for state, text in words.items()]
    handles.append(Patch(color=FILLS["outside"], label="not looked at"))
    ax.legend(
        handles=handles,
        loc="lower center",
        ncols=5,
        fontsize=10,
        handlelength=1,
        handletextpad=0.4,
        columnspacing=1.1,
        borderaxespad=0.2,
    )
    return figure


def _places(growth: Growth) -> dict[fx.Node, tuple[float, float]]:
    """Return where the operations are drawn: in a row, and the convolution of a skip connection above it."""
    places: dict[fx.Node, tuple[float, float]] = {}
    for node in growth.nodes:
        row = sum(y == 0 for _, y in places.values())
        above = "downsample" in str(node.target)
        places[node] = (row - 1.5, 2.35) if above else (float(row), 0.0)
    return places


def _box(ax: Axes, growth: Growth, node: fx.Node, at: tuple[float, float], k: int) -> None:
    """Draw one operation with its name."""
    state = growth.state(node, k)
    corner = (at[0] - 0.36, at[1] - 0.85)
    shape = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(corner, 0.72, 1.7, boxstyle=shape, fc=FILLS[state], ec="none", mutation_aspect=0.8))
    kind = growth.network.kinds.get(node)
    words = {None: "+", Kind.CONVOLUTION: "conv", Kind.ACTIVATION: "ReLU"}[kind]
    colour = {"compared": "white", "outside": "#9a9a9a"}.get(state, "black")
    ax.text(*at, words, rotation=90 if kind else 0, ha="center", va="center", size=11, color=colour)


def _arrows(ax: Axes, growth: Growth, node: fx.Node, places: dict[fx.Node, tuple[float, float]], k: int) -> None:
    """Draw where an operation has its values from: its neighbour straight, skip connections as arcs above."""
    x, y = places[node]
    inside = growth.state(node, k) in ("layer", "compared", "computed")
    for source in map(growth.source, node.all_input_nodes):
        if source not in places:
            continue
        begin, height = places[source]
        enters = inside and source in growth.entering(k)
        colour = GREEN if enters else "#444444" if inside else "#c4c4c4"
        tip = {"arrowstyle": "-|>", "color": colour, "lw": 2 if enters else 1.2, "mutation_scale": 8}
        look = tip | {"shrinkA": 0, "shrinkB": 0}
        if y == height == 0 and x - begin == 1:  # a neighbour
            ax.annotate("", (x - 0.34, 0.0), (begin + 0.34, 0.0), arrowprops=look)
        elif y > 0:  # up to the convolution of a skip connection
            bent = look | {"connectionstyle": "arc3,rad=-0.25"}
            ax.annotate("", (x - 0.36, y), (begin, 0.85), arrowprops=bent)
        elif height > 0:  # and down from it
            bent = look | {"connectionstyle": "arc3,rad=-0.25"}
            ax.annotate("", (x, 0.85), (begin + 0.36, height), arrowprops=bent)
        else:
            bent = look | {"connectionstyle": "arc3,rad=-0.36"}
            ax.annotate("", (x, 0.85), (begin, 0.85), arrowprops=bent)
