"""A traced network as an ordered list of operations: its layers, and the segment "layer l and the K operations on".

Symbols: ``l`` is a :class:`Layer`, ``f_{l:l+k}`` the part of the network from layer ``l`` to its k-th following
operation, a *tap* the place where that operation's output is observed. Skip connections need no special case: a
segment is every node that depends on the layer, up to the last tap, and what it reads from elsewhere is its context.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.errors import SnowsError
from snows_core.network.copies import unwrap
from snows_core.network.liveness import Liveness
from snows_core.network.nodes import attribute_at, called_function, called_module, first_input, path_of
from snows_core.network.operations import Kind, kind_of, tap_of, weight_of
from snows_core.network.paths import ancestors, differentiable, is_last_word
from snows_core.network.trace import trace
from snows_core.network.traced_module import release_with
from snows_core.network.unlisted import grouped, unlisted_weights
from snows_core.settings import TapRule

Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of a network, in execution order.

    Attributes:
        name: name of its module, or of its parameter where the weight is used without one.
        weight_name: qualified name of its weight in the model's state dict; empty when it is computed, not stored.
        kind: convolution or linear.
        node: its place in the graph.
    """

    name: str
    weight_name: str
    kind: Kind
    node: fx.Node


@dataclass(frozen=True)
class Segment:
    """Layer ``l`` and the K operations after it.

    Attributes:
        layer: the layer whose weight is free.
        taps: nodes whose outputs are compared, the layer's own first; K + 1 of them, fewer at the network's end.
        nodes: the nodes to run, in order: all that depend on the layer and lead to a tap.
        context: values that those nodes read from outside the segment, the layer's input among them.
        prelude: nodes that compute such values after the layer's place in the order, but without depending on it
            (a shortcut convolution, for instance).
    """

    layer: Layer
    taps: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    context: tuple[fx.Node, ...]
    prelude: tuple[fx.Node, ...]

    @property
    def k(self) -> int:
        """Operations after the layer that are really there (less than asked near the network's end)."""
        return len(self.taps) - 1


class Network:
    """A traced model: ordered nodes, layers, and the means to run any stretch of it with any layer weight replaced.

    Args:
        model: network in eval mode; copied, never changed.
        leaf_modules: see :func:`snows_core.network.trace.trace`.
        example: a few images, to answer what the forward pass asks of shapes; see there.

    Attributes:
        module: the traced copy; its weights are never changed.
        nodes: its operations in execution order, the image first; ``index`` is the place of each.
        kinds: what each operation is, for those that K counts.
        layers: convolution and linear layers in execution order.
        liveness: where each value is read for the last time; the network's outputs stay.
        state_names: names of the model's state dict.
        undifferentiable: nodes known to pass no gradient on.

    Raises:
        SnowsError: when the model cannot be traced, or has no convolution or linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        leaf_modules: Iterable[type[nn.Module] | str] = (),
        example: Tensor | None = None,
    ) -> None:
        self.module = trace(model, leaf_modules, example)
        release_with(self, self.module)
        self.state_names = frozenset(unwrap(model).state_dict())
        self.nodes: list[fx.Node] = [node for node in self.module.graph.nodes if node.op not in ("get_attr", "output")]
        self.image = self.nodes[0]
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.kinds = {node: kind for node in self.nodes if (kind := kind_of(node)) is not None}
        end = next(node for node in self.module.graph.nodes if node.op == "output")
        self.output = end.args[0]
        self.layers = [
            self._layer(node, kind) for node, kind in self.kinds.items() if kind in (Kind.CONVOLUTION, Kind.LINEAR)
        ]
        if not self.layers:
            others = grouped((name, reason) for name, _, reason in unlisted_weights(self.module, unwrap(model), ()))
            raise SnowsError(
                "model: got a network without a convolution or linear layer; there is nothing to prune."
                + (f" Other weights are: {others}." if others else "")
            )
        self.liveness = Liveness(self.nodes, keep=end.all_input_nodes)
        self.undifferentiable: set[fx.Node] = set()
        self._classifiers: dict[fx.Node, bool] = {}

    def _layer(self, node: fx.Node, kind: Kind) -> Layer:
        weight = weight_of(node) or ""
        if node.op == "call_module":
            return Layer(str(node.target), weight, kind, node)
        return Layer(weight.removesuffix(".weight") or self._layer_module(node) or node.name, weight, kind, node)

    def _layer_module(self, node: fx.Node) -> str:
        """Return the name of the layer module that computes its weight and calls a function, if a node was it."""
        path, kind = next(reversed((node.meta.get("nn_module_stack") or {"": ("", None)}).values()))
        layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        return path if isinstance(kind, type) and issubclass(kind, layers) else ""

    def weight(self, layer: Layer) -> Tensor:
        """Return the dense weight of a layer, shape as in the model: (out, in) or (out, in / groups, *kernel)."""
        return self.module.get_parameter(layer.weight_name).detach()

    def segment(self, layer: Layer, k: int, tap_rule: TapRule = "all") -> Segment:
        """Cut out a layer and the ``k`` operations after it that depend on it.

        Args:
            layer: one of ``self.layers``.
            k: how many following operations to keep; 0 is the layer alone.
            tap_rule: "all" counts convolution, linear, activation, attention product and stand-alone normalisation;
                "published" counts as the authors' code does: no normalisation, shortcut convolution or classifier.

        Returns:
            The segment; near the network's end, or in front of an operation without a derivative (``detach``,
            rounding), it holds fewer than ``k`` operations.
        """
        later = self.nodes[self.index[layer.node] + 1 :]
        depends: set[fx.Node] = {layer.node}
        for node in later:
            if not depends.isdisjoint(node.all_input_nodes):
                depends.add(node)
        within_reach = differentiable(layer.node, later, self.undifferentiable)
        counted = [node for node in later if node in within_reach and self._counts(node, tap_rule)]
        taps = [tap_of(node) for node in (layer.node, *counted[:k])]
        nodes = self._leading_to(taps, depends)
        outside = {source for node in nodes for source in node.all_input_nodes if source not in depends}
        prelude = self._leading_to(
            [node for node in outside if node in self.index], {n for n in self.nodes if n not in depends}
        )
        start = self.index[layer.node]
        prelude = tuple(node for node in prelude if self.index[node] >= start)
        context = tuple(node for node in self.nodes if node in outside)
        return Segment(layer, tuple(taps), nodes, context, prelude)

    def _counts(self, node: fx.Node, tap_rule: TapRule) -> bool:
        """Tell whether K counts a node; see :meth:`segment` for the rules."""
        kind = self.kinds.get(node)
        if tap_rule == "all" or kind is None:
            return kind is not None
        shortcut = any(word in str(node.target) for word in ("downsample", "shortcut"))
        return kind is not Kind.NORMALISATION and not shortcut and not self.is_classifier(node)

    def is_classifier(self, node: fx.Node) -> bool:
        """Tell whether the layer at ``node`` gives the answer: none comes after it, and no residual unit holds it."""
        if node not in self._classifiers:
            is_layer = self.kinds.get(node) in (Kind.CONVOLUTION, Kind.LINEAR)
            self._classifiers[node] = is_layer and is_last_word(node, self.nodes[self.index[node] + 1 :])
        return self._classifiers[node]

    def is_first(self, layer: Layer) -> bool:
        """Tell whether a layer reads the image with no other layer before it (first convolution, patch embedding)."""
        before = self.before(layer)
        return self.image in before and not any(
            self.kinds.get(node) in (Kind.CONVOLUTION, Kind.LINEAR) for node in before
        )

    def before(self, layer: Layer) -> set[fx.Node]:
        """Return every node on whose numbers a layer's input depends."""
        return ancestors(layer.node)

    def _leading_to(self, targets: Iterable[fx.Node], among: set[fx.Node]) -> tuple[fx.Node, ...]:
        """Return the nodes of ``among`` that the targets need, in execution order, without looking through others."""
        needed: set[fx.Node] = set()
        stack = [node for node in targets if node in among]
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack.extend(source for source in node.all_input_nodes if source in among)
        return tuple(sorted((node for node in needed if node in self.index), key=self.index.__getitem__))

    def run(self, nodes: Iterable[fx.Node], values: Values, weights: Mapping[str, Tensor] | None = None) -> Values:
        """Run nodes in order and return ``values`` extended by their outputs.

        Args:
            nodes: nodes in execution order.
            values: what is known so far; extended in place.
            weights: parameter name to tensor, in place of the model's own; autograd flows through them.

        Returns:
            ``values`` itself.
        """
        for node in nodes:
            values[node] = self._call(node, values, weights or {})
        return values

    def _call(self, node: fx.Node, values: Values, weights: Mapping[str, Tensor]) -> Any:
        """Return the output of one node for the values and weights given."""

        def fetch(source: fx.Node) -> Any:
            if source.op != "get_attr":
                return values[source]
            name = path_of(source)
            return weights[name] if name in weights else self.constant(source)

        args: Any = fx.map_arg(node.args, fetch)
        kwargs: Any = fx.map_arg(node.kwargs, fetch)
        if node.op == "call_function":
            return called_function(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], path_of(node))(*args[1:], **kwargs)
        module = called_module(node)
        own = {name: weights[full] for name in ("weight", "bias") if (full := f"{node.target}.{name}") in weights}
        if not own:
            return module(*args, **kwargs)
        if type(module) is nn.Linear:
            return F.linear(args[0], own.get("weight", module.weight), own.get("bias", module.bias))
        if type(module) is nn.Conv2d:
            return module._conv_forward(args[0], own.get("weight", module.weight), own.get("bias", module.bias))
        return torch.func.functional_call(module, own, args, kwargs)

    def beside(self, layer: Layer) -> tuple[fx.Node, ...]:
        """Return the nodes that compute what a layer reads beside its input: a bias put together from parameters."""
        return self._leading_to(layer.node.all_input_nodes[1:], set(self.nodes))

    def apply(self, layer: Layer, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Run a layer alone; a bias that is put together from parameters (BEiT's) is computed on the way.

        Args:
            layer: one of ``self.layers``.
            x: its input.
            weight: in place of its dense weight.

        Returns:
            Its output.
        """
        values = self.run(self.beside(layer), {first_input(layer.node): x})
        weights = {} if weight is None else {layer.weight_name: weight}
        return self.run((layer.node,), values, weights)[layer.node]

    def constant(self, node: fx.Node) -> Any:
        """Return the parameter or buffer that a ``get_attr`` node stands for."""
        return attribute_at(self.module, path_of(node))
