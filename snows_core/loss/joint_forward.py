"""The whole network with free parameters, batch norm folded into the convolution before it, in autograd's sight.

In eval mode batch norm is ``s x + t`` with ``s = gamma / sqrt(var + eps)`` and ``t = beta - mean s``. Folding it makes
one pass over the activations of three, and its double backward, which PyTorch puts together of many passes, one over
the weights. Scales and shifts stay free: the folded weight ``s W`` and bias ``s b + t`` are functions of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from snows_core.network.graph import Network, Values
from snows_core.network.liveness import Liveness
from snows_core.network.nodes import first_input, module_of
from snows_core.network.operations import Kind, batch_norm_arguments, is_batch_norm, tap_of, uses_batch_statistics


class JointForward:
    """Runs a network up to its taps.

    Args:
        network: the traced network.
        taps: the nodes whose outputs are wanted.
    """

    def __init__(self, network: Network, taps: Sequence[fx.Node]) -> None:
        self.network, self.taps = network, taps
        self.sources = {
            node: source
            for node in network.nodes
            if is_batch_norm(node)
            and not uses_batch_statistics(node)
            and (source := _plain_convolution(node)) is not None
            and source not in taps
        }
        self._norms = {source: node for node, source in self.sources.items()}
        merged = set(self.sources.values())
        self.steps = [node for node in network.nodes[1:] if node not in merged]
        self.liveness = Liveness(self.steps, taps, reads=self._reads)

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        source = self.sources.get(node)
        return node.all_input_nodes if source is None else source.all_input_nodes

    def __call__(
        self, x: Tensor, state: Mapping[str, Tensor], seen: dict[fx.Node, tuple[Tensor, Tensor]] | None = None
    ) -> list[Any]:
        """Run the network.

        Args:
            x: images (N, C, H, W).
            state: parameters in place of the dense ones, by name.
            seen: where to note the input and the output of every convolution and linear node; the output of one that
                is folded is that of its batch norm.

        Returns:
            What the taps show.
        """
        values: Values = {self.network.image: x}
        for node in self.steps:
            source = self.sources.get(node)
            if source is None:
                self.network.run((node,), values, state)
            else:
                values[node] = self._folded(node, source, values[source.all_input_nodes[0]], state)
            layer = node if source is None else source
            if seen is not None and self.network.kinds.get(layer) in (Kind.CONVOLUTION, Kind.LINEAR):
                seen[layer] = values[first_input(layer)], values[node]
            self.liveness.drop(values, node)
        return [values[tap] for tap in self.taps]

    def scale(self, layer: fx.Node, state: Mapping[str, Tensor]) -> Tensor | None:
        """Return the factor (out,) of the batch norm folded into a layer, or None where there is none."""
        norm = self._norms.get(layer)
        return None if norm is None else self._affine(norm, state)[0]

    def _folded(self, node: fx.Node, source: fx.Node, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the output (N, out, H', W') of a convolution ``source`` and the batch norm ``node`` behind it."""
        module = module_of(source)
        assert isinstance(module, nn.Conv2d), "only such are folded"
        weight = state.get(f"{source.target}.weight", module.weight)  # (out, in / groups, *kernel)
        bias = state.get(f"{source.target}.bias", module.bias)
        scale, shift = self._affine(node, state)
        shift = shift if bias is None else shift + bias * scale
        output: Tensor = module._conv_forward(x, weight * scale.view(-1, 1, 1, 1), shift)
        return output

    def _affine(self, node: fx.Node, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (s, t) of a batch norm, each (channels,)."""
        given = batch_norm_arguments(node)
        mean, var, gamma, beta = (
            self._value(node, name, given[name], state) for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = torch.rsqrt(var + given["eps"])
        scale = scale if gamma is None else scale * gamma
        return scale, -mean * scale if beta is None else beta - mean * scale

    def _value(self, node: fx.Node, name: str, given: Any, state: Mapping[str, Tensor]) -> Any:
        """Return one number a channel of a batch norm, from the state where it is there."""
        if isinstance(given, fx.Node):
            path = str(given.target)
            return state[path] if path in state else self.network.constant(given)
        return state.get(f"{node.target}.{name}", given) if node.op == "call_module" else given


def _plain_convolution(batch_norm: fx.Node) -> fx.Node | None:
    """Return the convolution in front of a batch norm, where it is a plain one that nobody else reads."""
    source = batch_norm.all_input_nodes[0]
    plain = type(module_of(source)) is nn.Conv2d and tap_of(source) is batch_norm
    return source if plain else None
