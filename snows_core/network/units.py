"""Which parts of a network can be taken out whole: channels, hidden neurons and attention heads.

A *unit* is an output channel of a convolution, an output of a linear layer, or a head. A unit of one layer is a unit of
others, too, where an addition, a product or a depthwise convolution joins their channels: these are one *group*, and a
unit leaves all of its group's layers or none. As in :mod:`snows_core.network.channels`, channels are followed from
the layers that compute them (*producers*) to those that read them by weights of their own (*consumers*); but to take a
channel out asks for less and for more than to permute it: a residual addition joins the channels of two producers, and
a layer normalisation reads all channels together, so that none can go.

Of every unit it is also known where its value is one number for all images and positions, whatever the image: behind a
row of zeros this is the bias, and what batch norm and activation make of it. Such a number can be added to the bias of
a consumer that reads no borders of zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.network.channel_moves import Layout, Move, has_groups, layer_moves, pass_through, reads_by_weight
from snows_core.network.channels import readers_of, shapes_of
from snows_core.network.constants import Constants
from snows_core.network.derivatives import reads_only_the_shape
from snows_core.network.graph import Layer, Network, Values
from snows_core.network.heads import attentions, head_groups
from snows_core.network.liveness import Liveness
from snows_core.network.nodes import module_of, name_of
from snows_core.network.operations import Kind
from snows_core.network.unit_group import Reading, UnitGroup, UnitPart

_SUMS = ("add", "iadd", "add_", "sub", "isub", "sub_")
_PRODUCTS = ("mul", "imul", "mul_")
_OTHERS = ("truediv", "div", "maximum", "minimum")


@dataclass(eq=False)
class _Space:
    """Channels that come and go together.

    Attributes:
        units: how many.
        moves: tensors that hold them, the consumers' weights left out.
        bound: what keeps them, empty where nothing does.
        producers: the layers that compute them.
        consumers: the layers that read them, with their weights and the values that they read.
        is_residual: whether an addition joined the channels of several layers.
    """

    units: int
    moves: list[Move]
    bound: str = ""
    producers: list[Layer] = field(default_factory=list)
    consumers: list[tuple[Layer, Move, fx.Node]] = field(default_factory=list)
    is_residual: bool = False

    def bind(self, why: str) -> None:
        """Note what keeps these channels, the first thing that does."""
        self.bound = self.bound or why


@torch.no_grad()
def unit_groups(network: Network, model: nn.Module, example: Tensor) -> list[UnitGroup]:
    """Return all groups of units of a network, those that nothing can be taken out of with the reason.

    Args:
        network: the traced network.
        model: the model that it was traced from; classes of modules are seen there alone.
        example: a few images; run for shapes and values.

    Returns:
        Groups of channels and neurons in execution order, then heads.
    """
    return _Walk(network, model, example).groups()


class _Walk:
    """One pass over the nodes of a network that follows channels and constants."""

    def __init__(self, network: Network, model: nn.Module, example: Tensor) -> None:
        self.network, self.model = network, model
        self._shapes = shapes_of(network, example)
        self._layers = {layer.node: layer for layer in network.layers}
        self._places: dict[fx.Node, tuple[_Space, Layout]] = {}
        self.constants = Constants(network)
        values: Values = {network.image: example}
        liveness = Liveness(network.nodes)
        behind_heads = {one.source: one for one in attentions(network, model)}
        self._visit(network.image)
        for node in network.nodes[1:]:
            network.run((node,), values)
            self._visit(node)
            if node in behind_heads:
                self.constants.claim(node, behind_heads[node].constant())
            if node in self._places:
                self.constants.note(node, values[node], self._places[node][1].axis)
            liveness.drop(values, node)
        outputs: list[fx.Node] = []
        fx.map_arg(network.output, outputs.append)
        self._bind(outputs, "the network's output")

    def groups(self) -> list[UnitGroup]:
        """Return what was found."""
        readers = readers_of(self.network)
        spaces = list(dict.fromkeys(space for space, _ in self._places.values()))
        made = []
        for space in spaces:
            if not space.producers or space.units < 2:
                continue
            names = [move.name for move in (*space.moves, *(move for _, move, _ in space.consumers))]
            if shared := next((name for name in names if readers[name] > 1), ""):
                space.bind(f"'{shared}' is used more than once")
            if not space.consumers:
                space.bind("no layer reads them by weights of its own")
            made.append(self._group(space))
        heads = head_groups(self.network, self.model, self.constants, readers)
        of_heads = {layer.name for group in heads for layer in group.producers}  # rows that go by heads
        return [*(group for group in made if group.name not in of_heads), *heads]

    def _group(self, space: _Space) -> UnitGroup:
        producers = tuple(sorted(space.producers, key=lambda layer: self.network.index[layer.node]))
        kind = "neurons" if all(layer.kind is Kind.LINEAR for layer in space.producers) else "channels"
        readings = []
        for layer, move, source in space.consumers if not space.bound else ():
            part = _part(move, space.units)
            readings.append(Reading(layer, part, *self.constants.of(source, part.places)))
        parts = tuple(_part(move, space.units) for move in space.moves) if not space.bound else ()
        name, found = producers[0].name, tuple(readings)
        return UnitGroup(name, kind, space.units, producers, parts, found, space.bound, space.is_residual)

    def _visit(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._places]
        if node not in self._shapes:
            self._bind(() if reads_only_the_shape(node) else sources, f"'{node.name}' reads them")
            return
        if sources and (self._joins(node, sources) if len(sources) > 1 else self._passes(node, sources[0])):
            return
        layer, moves = self._layers.get(node), None
        why = f"'{node.name}' mixes or splits them"
        if layer is None:
            self._bind(sources, why)
        else:
            moves = layer_moves(node)
            if moves and has_groups(layer, self.network.weight(layer)):
                moves, why = None, f"'{layer.name}' has groups of channels, each of which keeps its size"
            self._consume(layer, sources)
        why = "" if moves else why if node.all_input_nodes else "the image"
        shape = self._shapes[node]
        first = len(shape) == 4 if layer is None else layer.kind is Kind.CONVOLUTION
        axis = (1 if first else len(shape) - 1) if shape else 0
        producers = [layer] if layer is not None and moves else []
        space = _Space(shape[axis] if shape else 1, list(moves or ()), why, producers)
        self._places[node] = space, Layout(axis)
        if producers:
            self.constants.begin(node)

    def _bind(self, nodes: Iterable[fx.Node], why: str) -> None:
        for node in nodes:
            if node in self._places:
                self._places[node][0].bind(why)

    def _passes(self, node: fx.Node, source: fx.Node) -> bool:
        """Let channels pass through a node that reads them alone, if it treats each by itself."""
        space, layout = self._places[source]
        if isinstance(module_of(node), nn.LayerNorm) or node.target is F.layer_norm:
            space.bind(f"'{node.name}' normalises over all of them together")
            return False
        if not node.args or node.args[0] is not source:
            return False
        passed = pass_through(node, layout, self._shapes)
        if passed is None:
            return False
        self._places[node] = space, passed[0]
        space.moves += passed[1]
        self.constants.follow(node, source, self._layers.get(node))
        return True

    def _joins(self, node: fx.Node, sources: Sequence[fx.Node]) -> bool:
        """Let a sum or product of values join their channels, if it takes channel by channel."""
        name = name_of(node)
        if name not in (*_SUMS, *_PRODUCTS, *_OTHERS) or len(node.all_input_nodes) != len(sources):
            return False
        size = len(self._shapes[node])
        layouts = {self._places[source][1] for source in sources}
        same_rank = all(len(self._shapes[source]) == size for source in sources)
        axis = self._places[sources[0]][1].axis
        lengths = {self._shapes[source][axis] for source in sources} if same_rank else set()
        if len(layouts) > 1 or len(lengths) > 1 or not same_rank:
            return False
        spaces = list(dict.fromkeys(self._places[source][0] for source in sources))
        space = spaces[0]
        for other in spaces[1:]:
            self._merge(space, other)
        space.is_residual |= len(spaces) > 1 and name in _SUMS
        self._places[node] = space, self._places[sources[0]][1]
        self.constants.join(node, sources, is_product=name in _PRODUCTS)
        return True

    def _merge(self, space: _Space, other: _Space) -> None:
        """Make two sets of channels one, in the order in which they were met."""
        if space.units != other.units:
            space.bind("layers of another number of channels are joined with it")
        space.bind(other.bound)
        space.moves += other.moves
        space.producers += other.producers
        space.consumers += other.consumers
        space.is_residual |= other.is_residual
        for node, (owner, layout) in self._places.items():
            if owner is other:
                self._places[node] = space, layout

    def _consume(self, layer: Layer, sources: Sequence[fx.Node]) -> None:
        """Let a layer read channels by its weight, or bind them where it reads them in another way."""
        source = layer.node.args[0] if layer.node.args else None
        self._bind([other for other in sources if other is not source], f"'{layer.name}' reads them beside its input")
        if not isinstance(source, fx.Node) or source not in self._places:
            return
        space, layout = self._places[source]
        if reads_by_weight(layer, layout, self._shapes[source]):
            space.consumers.append((layer, Move(layer.weight_name, 1, layout.block), source))
        else:
            space.bind(
                f"'{layer.name}' does not read them one by one (groups of channels, or a weight of its own making)"
            )


def _part(move: Move, units: int) -> UnitPart:
    places = torch.arange(units * move.block).view(units, move.block)
    return UnitPart(move.name, move.axis, places)
