"""A preconditioner of the joint loss: row factors for every pruned layer, and a diagonal for what else is free.

The block of the Gauss-Newton matrix that belongs to one output row of a layer is about ``s_i A_SS``: the Gram matrix A
of the layer's input on the kept inputs S, times the mean square s_i of a random signal backpropagated to that output
(Kronecker factors: Martens & Grosse 2015, with the mask inside the factor). The same factors precondition the solve of
one layer (:mod:`snows_core.solvers.row_factors`). Biases and scales have the squares of such signals' gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from snows_core.activations.gram_matrices import normal_equations
from snows_core.devices import factor_bytes
from snows_core.distributed import ALONE
from snows_core.loss.batch_loss import math_attention
from snows_core.loss.joint import JointLoss
from snows_core.loss.joint_curvature import FlatState, gradients_of
from snows_core.network.geometry import geometry_of
from snows_core.solvers.row_factors import WIDE, RowFactors, full_factor_bytes

GROUP = 8  # images whose signals are added up before they are squared: each group is a probe of its own
Sums = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, int]]
LEAST = 1e-2  # no row and no single parameter curves less than this share of the mean


class JointPreconditioner:
    """Maps a gradient to about the Gauss-Newton direction.

    Args:
        loss: the joint loss.
        images: from which Gram matrices and signals are taken, on the device of the network.
        state: where, parameter name to value.
        kept: parameter name to mask of every pruned weight.
        flat: how the state lies in a vector.
        generator: source of the signals, drawn on its own device.
        ridge: damping of the factors, relative to the mean of the Gram matrix's diagonal.
    """

    def __init__(
        self,
        loss: JointLoss,
        images: Tensor,
        state: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        flat: FlatState,
        generator: torch.Generator,
        ridge: float = 1e-2,
    ) -> None:
        self.loss, self.flat = loss, flat
        layers = _plain_layers(loss, state, kept)
        grams: dict[str, Tensor] = {}
        rows = {name: torch.zeros_like(state[name].flatten(1)[:, 0]) for name in layers}  # (out,) each
        squares = {name: torch.zeros_like(value) for name, value in state.items() if name not in layers}
        positions = dict.fromkeys(layers, 0)
        for number, group in enumerate(torch.split(images, GROUP)):
            if not loss.processes.takes(number):
                loss.pass_over(len(group), generator)
                continue
            slopes = {name: torch.zeros_like(value) for name, value in squares.items()}
            for x in torch.split(group, loss.piece):
                seen, signals, gradients = self._signals(x, state, layers, list(squares), generator)
                for (name, node), signal in zip(layers.items(), signals, strict=True):
                    geometry = geometry_of(node, state[name])
                    gram, _ = normal_equations([(seen[node][0].detach(), None)], geometry, len(state[name]))
                    grams[name] = grams.get(name, 0) + gram / len(images)
                    channels = signal.transpose(0, 1 if state[name].ndim > 2 else -1).flatten(1)  # (out, N * positions)
                    scale = loss.forward.scale(node, state)
                    rows[name] += channels.square().sum(1) * (1.0 if scale is None else scale.square())
                    positions[name] += channels.shape[1]
                for name, gradient in zip(squares, gradients, strict=True):
                    slopes[name] += gradient
            for name, slope in slopes.items():
                squares[name] += slope.square() / len(images)
        if loss.processes.several:
            grams, rows, squares, positions = self._of_all(layers, state, (grams, rows, squares, positions))
        room = factor_bytes(loss.device) / max(1, len(layers))
        self.factors = {
            name: RowFactors(
                gram,
                kept[name].flatten(1),
                ridge,
                _raised(rows[name] / positions[name]),
                room,
                processes=loss.processes if full_factor_bytes(kept[name].flatten(1), gram) > WIDE else ALONE,
            )
            for name, gram in grams.items()
        }
        # A few probes are a rough estimate of one entry: half of it is the mean over the tensor.
        self.diagonals = {name: _raised(0.5 * (value + value.mean())) for name, value in squares.items()}

    def _of_all(self, layers: Mapping[str, fx.Node], state: Mapping[str, Tensor], own: Sums) -> Sums:
        """Return the sums of all processes; one that had no images has not even the shapes of Gram matrices."""
        grams, rows, squares, positions = own
        for name, node in layers.items():
            width = state[name][0].numel()
            nothing = state[name].new_zeros(geometry_of(node, state[name]).groups, width, width)
            grams[name] = self.loss.processes.total(grams.get(name, nothing))
        sums = self.loss.processes.totals([*rows.values(), *squares.values()])
        places = self.loss.processes.total(torch.tensor([float(positions[name]) for name in layers]).double())
        return (
            {name: grams[name] for name in layers},
            dict(zip(rows, sums[: len(rows)], strict=True)),
            dict(zip(squares, sums[len(rows) :], strict=True)),
            dict(zip(layers, map(int, places.tolist()), strict=True)),
        )

    def _signals(
        self,
        x: Tensor,
        state: Mapping[str, Tensor],
        layers: Mapping[str, fx.Node],
        others: list[str],
        generator: torch.Generator,
    ) -> tuple[dict[fx.Node, tuple[Tensor, Tensor]], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Backpropagate random signs from the taps.

        Returns:
            Inputs and outputs of every layer, and the signals at the outputs of ``layers`` and at the ``others``.
        """
        leaves = {name: value.detach().requires_grad_(True) for name, value in state.items()}
        seen: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad(), math_attention():
            outputs = self.loss.forward(x, leaves, seen)
            wanted = [*(seen[node][1] for node in layers.values()), *(leaves[name] for name in others)]
            drawn = self.loss.signals([output.detach() for output in outputs], generator)
            found = gradients_of(outputs, wanted, drawn)
        return seen, found[: len(layers)], found[len(layers) :]

    def diagonal(self, name: str) -> Tensor:
        """Return the curvature of every entry of a parameter, pruned ones included, of its shape."""
        factors = self.factors.get(name)
        if factors is None:
            return self.diagonals[name]
        out, _ = factors.shape
        inputs = factors.gram.diagonal(dim1=-2, dim2=-1) + factors.damping  # (groups, d)
        rows = inputs.repeat_interleave(out // len(inputs), 0)  # (out, d)
        rows = rows if factors.scale is None else rows * factors.scale[:, None]
        return rows.view(self.flat.like[name].shape)

    def __call__(self, residual: Tensor) -> Tensor:
        """Return the preconditioned residual, a vector as the residual is."""
        parts = {
            name: self.factors[name].solve(value.flatten(1)).view_as(value)
            if name in self.factors
            else value / self.diagonals[name]
            for name, value in self.flat.state(residual).items()
        }
        return self.flat.vector(parts)


def _plain_layers(loss: JointLoss, state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, fx.Node]:
    """Return the pruned weights that one two-dimensional convolution or linear layer alone reads, with its node."""
    network = loss.forward.network
    readers = {name: [layer.node for layer in network.layers if layer.weight_name == name] for name in kept}
    return {name: nodes[0] for name, nodes in readers.items() if len(nodes) == 1 and state[name].ndim in (2, 4)}


def _raised(curvature: Tensor) -> Tensor:
    """Return positive numbers, none of them far below the mean."""
    least = LEAST * float(curvature.mean()) + torch.finfo(curvature.dtype).tiny
    return curvature.clamp(min=least)
