"""Which channels of a network may be put in another order without changing its function.

The output channels of a convolution or linear layer (the *producer*) may be permuted where everything that reads them
works channel by channel, until other layers (the *consumers*) read them with weights of their own: batch norm,
element-wise functions, depthwise convolutions, pooling and changes of shape that keep a channel together
(:mod:`snows_core.network.channel_moves`). The same permutation then goes to the rows of the producer, to what lies
between, and to the columns of the consumers. A residual addition, a concatenation or any other reader binds the order
of the channels that it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from snows_core.network.channel_moves import Layout, Move, has_groups, layer_moves, pass_through, reads_by_weight
from snows_core.network.derivatives import reads_only_the_shape
from snows_core.network.graph import Layer, Network, Values
from snows_core.network.liveness import Liveness
from snows_core.network.nodes import module_of, name_of, path_of
from snows_core.network.operations import Kind, is_addition

RESIDUAL = "a residual stream"
_OF_TWO = ("add", "sub", "mul", "truediv", "div", "maximum", "minimum")


@dataclass(frozen=True)
class Chain:
    """A producer whose output channels may be put in any order, with all that has to follow.

    Attributes:
        producer: the layer that computes the channels.
        consumers: the layers that read them.
        channels: how many.
        moves: every tensor that is in their order: of the producer, of what lies between, of the consumers.
    """

    producer: Layer
    consumers: tuple[Layer, ...]
    channels: int
    moves: tuple[Move, ...]


@dataclass
class _Flow:
    """Channels from where they begin to where they are read; free until something binds their order.

    Attributes:
        channels: how many.
        moves: tensors that are in their order.
        bound: what binds their order, empty where nothing does.
        producer: the layer that computes them, if one does.
        consumers: layers that read them.
    """

    channels: int
    moves: list[Move]
    bound: str = ""
    producer: Layer | None = None
    consumers: list[Layer] = field(default_factory=list)


class Channels:
    """The channels of a network: those that are free to be permuted, and what binds the others.

    Args:
        network: the traced network.
        example: a few images; run once, for the shapes of all values.

    Attributes:
        chains: the free ones, in execution order of their producers.
        bound: layer name to what binds the order of its input channels, for every layer that reads no free ones.
    """

    def __init__(self, network: Network, example: Tensor) -> None:
        self._network, self._shapes = network, shapes_of(network, example)
        self._layers = {layer.node: layer for layer in network.layers}
        self._places: dict[fx.Node, tuple[_Flow, Layout]] = {}
        self._flows: list[_Flow] = []
        for node in network.nodes:
            self._visit(node)
        outputs: list[fx.Node] = []
        fx.map_arg(network.output, outputs.append)
        self._bind(outputs, "the network's output")
        readers = readers_of(network)
        for flow in self._flows:
            if shared := next((move.name for move in flow.moves if readers[move.name] > 1), ""):
                flow.bound = flow.bound or f"'{shared}', which is used more than once"
        self.chains = [
            Chain(flow.producer, tuple(flow.consumers), flow.channels, tuple(flow.moves))
            for flow in self._flows
            if flow.producer is not None and flow.consumers and not flow.bound and flow.channels > 1
        ]
        free = {layer.name for chain in self.chains for layer in chain.consumers}
        reasons = {layer.name: flow.bound for flow in self._flows for layer in flow.consumers}
        self.bound = {
            layer.name: reasons.get(layer.name, "") or "its groups, which read channels of their own"
            for layer in network.layers
            if layer.name not in free
        }

    def _visit(self, node: fx.Node) -> None:
        """Follow the channels that a node reads; where they cannot pass, they end, and new ones begin."""
        sources = [source for source in node.all_input_nodes if source in self._places]
        if node not in self._shapes:
            self._bind(() if reads_only_the_shape(node) else sources, f"'{node.name}'")
            return
        if sources and self._passes(node, sources):
            return
        layer, moves = self._layers.get(node), None
        why = RESIDUAL if is_addition(node) and len(sources) > 1 else f"'{node.name}'"
        if layer is not None:
            moves = layer_moves(node)
            if moves and has_groups(layer, self._network.weight(layer)):
                moves = None  # an output would move into another group
            self._consume(layer, sources)
        else:
            self._bind(sources, why)
        why = "the image" if not node.all_input_nodes else "" if moves else why
        shape = self._shapes[node]
        first = len(shape) == 4 if layer is None else layer.kind is Kind.CONVOLUTION
        axis = 1 if first else len(shape) - 1
        flow = _Flow(shape[axis] if shape else 1, list(moves or ()), why, layer)
        self._flows.append(flow)
        self._places[node] = flow, Layout(axis)

    def _bind(self, nodes: Iterable[fx.Node], why: str) -> None:
        for node in nodes:
            if node in self._places:
                flow = self._places[node][0]
                flow.bound = flow.bound or why

    def _passes(self, node: fx.Node, sources: Sequence[fx.Node]) -> bool:
        """Let channels pass through a node, if it lets them."""
        flow, layout = self._places[sources[0]]
        if len(sources) > 1:  # of one origin, such as x * sigmoid(x)
            one = all(self._places[source][0] is flow and self._places[source][1] == layout for source in sources)
            same = len({self._shapes[source] for source in (*sources, node)}) == 1
            if one and same and name_of(node) in _OF_TWO:
                self._places[node] = flow, layout
                return True
            return False
        passed = pass_through(node, layout, self._shapes) if node.args and node.args[0] is sources[0] else None
        if passed is None:
            return False
        self._places[node] = flow, passed[0]
        flow.moves += passed[1]
        return True

    def _consume(self, layer: Layer, sources: Sequence[fx.Node]) -> None:
        """Let a layer read channels by its weight, or bind them where it reads them in another way."""
        source = layer.node.args[0] if layer.node.args else None
        self._bind([other for other in sources if other is not source], f"'{layer.name}'")
        if not isinstance(source, fx.Node) or source not in self._places:
            return
        flow, layout = self._places[source]
        flow.consumers.append(layer)
        if reads_by_weight(layer, layout, self._shapes[source]):
            flow.moves.append(Move(layer.weight_name, 1, layout.block))
        else:
            flow.bound = flow.bound or f"'{layer.name}'"


@torch.no_grad()
def shapes_of(network: Network, example: Tensor) -> dict[fx.Node, torch.Size]:
    """Run a ``network`` on a few images, the ``example``, and return the shape of every value that is a tensor."""
    values: Values = {network.image: example}
    shapes = {network.image: example.shape}
    liveness = Liveness(network.nodes)
    for node in network.nodes[1:]:
        network.run((node,), values)
        if isinstance(values[node], Tensor):
            shapes[node] = values[node].shape
        liveness.drop(values, node)
    return shapes


def readers_of(network: Network) -> Counter[str]:
    """Count the nodes of a ``network`` that read each parameter or buffer, under any of its names."""
    root = network.module
    own = dict(root.named_parameters(remove_duplicate=False)) | dict(root.named_buffers(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(tensor.data_ptr(), []).append(name)
    counts: Counter[str] = Counter()
    for node in root.graph.nodes:
        module = module_of(node)
        if module is not None:
            inner = (*dict(module.named_parameters()), *dict(module.named_buffers()))
            read = [f"{node.target}.{name}" for name in inner]
        elif node.op == "get_attr" and path_of(node) in own:
            read = [path_of(node)] * sum(not reads_only_the_shape(user) for user in node.users)
        else:
            continue
        for name in read:
            counts.update(names[own[name].data_ptr()])
    return counts
