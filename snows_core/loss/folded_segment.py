"""A segment made cheap for the solver: batch norm folded, values dropped after their last use, one weight free.

In eval mode batch norm is the affine map ``s x + t`` with ``s = gamma / sqrt(var + eps)`` and ``t = beta - mean s``,
one number per channel. Behind a convolution it is folded into weight and bias; elsewhere it becomes one
multiply-add. Its double backward, which is expensive in its original form, then costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from snows_core.loss.frozen import ConvolutionModule, Shape, frozen_convolution, shape_of
from snows_core.network.graph import Network, Segment, Values
from snows_core.network.liveness import Liveness
from snows_core.network.nodes import module_of
from snows_core.network.operations import batch_norm_arguments, is_batch_norm, tap_of, uses_batch_statistics
from snows_core.network.timm_layers import is_plain_same_padded, is_same_padded, pad_same
from snows_core.settings import TapRule


@dataclass(frozen=True)
class _Affine:
    """A batch norm in eval mode as ``s x + t``, each (C,); with ``source`` it is folded into that convolution."""

    scale: Tensor
    shift: Tensor
    source: fx.Node | None


def batch_norm_affine(network: Network, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Return (s, t) of an eval-mode batch norm node, each (channels,), or None when it uses batch statistics."""
    if uses_batch_statistics(node):
        return None
    given = {
        name: network.constant(value) if isinstance(value, fx.Node) else value
        for name, value in batch_norm_arguments(node).items()
        if name != "input"
    }
    mean, var, gamma, beta = (given[name] for name in ("running_mean", "running_var", "weight", "bias"))
    scale = torch.rsqrt(var + given["eps"])
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale
    return scale.detach(), (shift if beta is None else shift + beta).detach()


@dataclass(frozen=True)
class _Constant:
    """A convolution behind the layer: its constant weight (out, in / groups, *kernel), batch norm folded into it."""

    source: fx.Node
    weight: Tensor
    bias: Tensor | None
    shape: Shape


class FoldedSegment:
    """Runs a segment with its layer's weight as the one free variable.

    Args:
        network: the traced network; all other weights are its own.
        segment: what to run.
        tap_rule: "published" observes a convolution before its batch norm: the same as observing it behind, with each
            channel's error divided by s; "all" observes it behind.

    Attributes:
        steps: the nodes that are run, in order, the layer (or the batch norm that it is folded with) first.
        merged: the convolutions that run as a part of their batch norm.
        liveness: where each value is read for the last time.
        tap_scales: per tap the factor (C,), on axis 1, that its error is multiplied by before squaring, or None for 1.
    """

    def __init__(self, network: Network, segment: Segment, tap_rule: TapRule = "all") -> None:
        self.network, self.segment = network, segment
        self.affine: dict[fx.Node, _Affine] = {}
        for node in segment.nodes:
            if is_batch_norm(node) and (found := batch_norm_affine(network, node)) is not None:
                self.affine[node] = _Affine(*found, self._foldable(node))
        self.merged = {affine.source for affine in self.affine.values() if affine.source is not None}
        self.steps = [node for node in segment.nodes if node not in self.merged]
        self.tap_scales = [self._tap_scale(tap) if tap_rule == "published" else None for tap in segment.taps]
        found_constants = ((node, self._constant(node)) for node in self.steps[1:])
        self.constants = {node: constant for node, constant in found_constants if constant is not None}
        self.liveness = Liveness(self.steps, reads=self._reads)

    def _foldable(self, node: fx.Node) -> fx.Node | None:
        """Return the convolution in front of a batch norm, where it is a plain one that nobody else reads."""
        source = node.all_input_nodes[0]
        module = module_of(source)  # of another kind axis 1 may hold tokens, as behind a linear layer
        plain = type(module) is nn.Conv2d or is_plain_same_padded(module)
        return source if plain and tap_of(source) is node and source in self.segment.nodes else None

    def _constant(self, node: fx.Node) -> _Constant | None:
        """Return a convolution behind the layer, ready to run, where it is a plain one."""
        affine = self.affine.get(node)
        source = node if affine is None else affine.source
        module = None if source is None else module_of(source)
        shape = _same_shape(module) if is_same_padded(module) else shape_of(module)
        if source is None or shape is None:
            return None
        module = _convolution(source)
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        if affine is not None:
            weight, bias = _folded(affine, weight, bias)
        return _Constant(source, weight, bias, shape)

    def _tap_scale(self, tap: fx.Node) -> Tensor | None:
        """Return 1 / s of a tap that is a batch norm; channels that it all but switches off count at most 1000-fold."""
        affine = self.affine.get(tap)
        if affine is None:
            return None
        size = affine.scale.abs()
        return 1.0 / torch.clamp(size, min=float(size.max()) * 1e-3 + 1e-12)

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        """Return the values that a step reads: a batch norm that was folded reads what its convolution reads."""
        affine = self.affine.get(node)
        return node.all_input_nodes if affine is None or affine.source is None else affine.source.all_input_nodes

    def run(self, context: Values, weight: Tensor) -> list[Tensor]:
        """Run the segment from its context and return the tap outputs; autograd follows ``weight``."""
        return self.finish(*self.start(context, weight))

    def stream(self, context: Values, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Run the segment and yield (tap number, output) as each is reached, keeping only what later nodes read.

        Args:
            context: values that the segment reads from outside.
            weight: of its layer.

        Yields:
            A tap's number and its output.
        """
        values, numbers = dict(context), {tap: k for k, tap in enumerate(self.segment.taps)}
        for node in self.steps:
            self._step(node, values, weight if node is self.steps[0] else None)
            if node in numbers:
                yield numbers[node], values[node]
            self.liveness.drop(values, node)

    def start(self, context: Values, weight: Tensor) -> tuple[Values, fx.Node]:
        """Run the layer alone, with its folded batch norm.

        Args:
            context: values that the segment reads from outside.
            weight: of the layer.

        Returns:
            The values so far, and the node that holds the layer's output.
        """
        values = dict(context)
        node = self.steps[0]
        self._step(node, values, weight)
        return values, node

    def finish(self, values: Values, start: fx.Node) -> list[Tensor]:
        """Run what comes after :meth:`start`, from the ``values`` that it returned, and return the tap outputs."""
        for node in self.steps:
            if node is not start:
                self._step(node, values, None)
            self.liveness.drop(values, node, keep=self.segment.taps)
        return [values[tap] for tap in self.segment.taps]

    def layer_scale(self, signal: Tensor) -> Tensor | float:
        """Return s of the batch norm folded into the layer, shaped to multiply its output's gradient; 1 without.

        Args:
            signal: the gradient at the output of :meth:`start`, (N, out, *positions) where a batch norm is folded.
        """
        affine = self.affine.get(self.steps[0])
        if affine is None or affine.source is not self.segment.layer.node:
            return 1.0
        return _on_axis_1(affine.scale, signal)

    def _step(self, node: fx.Node, values: Values, weight: Tensor | None) -> None:
        affine, constant = self.affine.get(node), self.constants.get(node)
        if constant is not None:
            x = _padded(constant.source, values[constant.source.all_input_nodes[0]])
            values[node] = frozen_convolution(x, constant.weight, constant.bias, constant.shape)
        elif affine is None:
            own = {} if weight is None else {self.segment.layer.weight_name: weight}
            self.network.run((node,), values, own)
        elif affine.source is None:
            x = values[node.all_input_nodes[0]]  # (N, C, *positions)
            values[node] = x * _on_axis_1(affine.scale, x) + _on_axis_1(affine.shift, x)
        else:
            x = values[affine.source.all_input_nodes[0]]
            values[node] = _folded_layer(affine, affine.source, x, weight)


def _folded_layer(affine: _Affine, source: fx.Node, x: Tensor, weight: Tensor | None) -> Tensor:
    """Run a two-dimensional convolution and its batch norm as one convolution, in autograd's sight."""
    module = _convolution(source)
    weight, bias = _folded(affine, module.weight if weight is None else weight, module.bias)
    output: Tensor = module._conv_forward(_padded(source, x), weight, bias)
    return output


def _folded(affine: _Affine, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight (out, in / groups, *kernel) and bias (out,) of a convolution with its batch norm folded in."""
    shift = affine.shift if bias is None else affine.shift + affine.scale * bias
    return weight * affine.scale.view(-1, *(1,) * (weight.ndim - 1)), shift


def _on_axis_1(channels: Tensor, like: Tensor) -> Tensor:
    """Shape one number a channel, (C,), so that it goes with axis 1 of another tensor: (1, C, 1, ...)."""
    return channels.view(1, -1, *(1,) * (like.ndim - 2))


def _convolution(node: fx.Node) -> ConvolutionModule:
    """Return the convolution module that a node runs."""
    module = module_of(node)
    assert isinstance(module, ConvolutionModule), "only convolutions are folded"
    return module


def _same_shape(module: nn.Conv2d) -> Shape:
    """Return the shape of a convolution whose padding is added to its input beforehand."""
    return Shape(module.stride, (0, 0), module.dilation, module.groups)


def _padded(source: fx.Node, x: Tensor) -> Tensor:
    """Pad an input as its convolution does where that depends on its size (TensorFlow's "same", in timm)."""
    module = module_of(source)
    if not is_same_padded(module):
        return x
    return pad_same(x, module.kernel_size, module.stride, module.dilation)
