"""Curvature of the joint loss: products with its Gauss-Newton matrix, as an objective of one vector.

With ``f`` what the taps show, ``J`` their Jacobian in all free parameters and ``C`` the Hessian of the loss in ``f``
(positive semi-definite, as the loss is convex there), the matrix is ``J' C J`` (Schraudolph 2002). It is never formed:
``J v`` comes from differentiating ``J' u`` in u, and ``J' (C J v)`` from one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from snows_core.devices import batch_bytes
from snows_core.loss.batch_loss import math_attention
from snows_core.loss.joint import JointLoss
from snows_core.solvers.newton_cg import Linearisation

HELD = 4.0  # batches' worth of bytes that the graphs of all products of a step may take together
DOUBLE = 2.5  # the graph of a gradient that is differentiated again, relative to the graph of a loss


class FlatState:
    """Free parameters as one vector: all entries, or those that a mask keeps.

    Args:
        state: parameter name to value.
        kept: parameter name to mask, for those with pruned entries; these are zero.
    """

    def __init__(self, state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        self.like = dict(state)
        # Positions of the free entries of each parameter, row by row; None for all of them.
        self.places = {name: kept[name].flatten().nonzero().squeeze(1) if name in kept else None for name in state}
        self.sizes = [value.numel() if (at := self.places[name]) is None else len(at) for name, value in state.items()]

    def vector(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the free entries of a state as one vector (n,)."""
        parts = [
            state[name].flatten() if places is None else state[name].flatten()[places]
            for name, places in self.places.items()
        ]
        return torch.cat(parts)

    def state(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector (n,) as a state, zero where entries are not free, in the memory layout of the parameters."""
        made = {}
        for (name, places), part in zip(self.places.items(), torch.split(vector, self.sizes), strict=True):
            like = self.like[name]
            if places is not None:
                part = torch.zeros(like.numel(), dtype=part.dtype, device=part.device).index_copy(0, places, part)
            made[name] = torch.empty_like(like).copy_(part.view(like.shape))
        return made


@dataclass(frozen=True)
class _Piece:
    """Gauss-Newton products of one piece of the images."""

    loss: Tensor
    gradients: Sequence[Tensor]
    product: Callable[[Sequence[Tensor]], Sequence[Tensor]]


class JointObjective:
    """The joint loss on one batch as a function of one vector: what :func:`~snows_core.solvers.newton` minimises.

    Args:
        loss: the joint loss.
        images: the batch, (N, C, H, W), on the device of the network.
        flat: the free parameters.

    Attributes:
        products: curvature products so far; ``image_products`` counts them times images.
    """

    def __init__(self, loss: JointLoss, images: Tensor, flat: FlatState) -> None:
        self.loss, self.batch, self.flat = loss, images, flat
        self.products = self.image_products = 0

    @property
    def images(self) -> int:
        """How many images the loss is over."""
        return len(self.batch)

    def value(self, weight: Tensor) -> float:
        """Return the loss at a vector."""
        return self.loss.value(self.batch, self.flat.state(weight))

    def linearise(self, weight: Tensor, curvature_images: int | None = None) -> Linearisation:
        """Return loss, gradient and Gauss-Newton products at a vector.

        Args:
            weight: where, (n,).
            curvature_images: how many of the images the products are from; fewer where their graphs would not fit.
        """
        sample = min(self.images, self._fitting(), curvature_images or self.images)
        state = self.flat.state(weight)
        processes = self.loss.processes
        pieces = [self._piece(x, state) for x in self.loss.pieces(self.batch[:sample])]
        slopes_of = [self.flat.vector(dict(zip(state, p.gradients, strict=True))) for p in pieces]
        gradient = processes.total(torch.stack(slopes_of).sum(0) if pieces else torch.zeros_like(weight))
        total = torch.stack([piece.loss for piece in pieces]).sum() if pieces else weight.new_zeros(())
        total = processes.total(total)
        if sample < self.images:
            others = self.images - sample
            mean, slopes = self.loss.gradient(self.batch[sample:], state)
            total, gradient = total + mean * others, gradient + self.flat.vector(slopes) * others

        def product(direction: Tensor) -> Tensor:
            self.products += 1
            self.image_products += sample
            parts = list(self.flat.state(direction).values())
            sums = [self.flat.vector(dict(zip(state, p.product(parts), strict=True))) for p in pieces]
            return processes.total(torch.stack(sums).sum(0) if sums else torch.zeros_like(direction)) / sample

        return Linearisation(float(total) / self.images, gradient / self.images, product)

    def _fitting(self) -> int:
        """Return how many images' graphs may be held together."""
        room = HELD * batch_bytes(self.loss.device)
        return max(1, int(room / (DOUBLE * max(self.loss.graph_bytes, 1.0))))

    def _piece(self, x: Tensor, state: Mapping[str, Tensor]) -> _Piece:
        leaves = [value.detach().requires_grad_(True) for value in state.values()]
        with torch.enable_grad(), math_attention():
            outputs = self.loss.outputs(x, dict(zip(state, leaves, strict=True)))
            shown = [output.detach().requires_grad_(True) for output in outputs]
            loss = self.loss.total(shown, self.loss.targets(x))
            slopes = torch.autograd.grad(loss, shown, create_graph=True)  # of the loss in what the taps show
            # Not leaves: a graph holds those with their numbers, and of these only the places in it are needed.
            origin = loss.new_zeros((), requires_grad=True)
            cotangents = [slope.detach() + origin for slope in slopes]
            gradients = gradients_of(outputs, leaves, cotangents, create_graph=True)
        following = [i for i, output in enumerate(outputs) if output.requires_grad]  # taps behind a free parameter
        reached = [i for i, gradient in enumerate(gradients) if gradient.requires_grad]
        starts = [get_gradient_edge(cotangents[i]) for i in following]
        ends = [get_gradient_edge(outputs[i]) for i in following]

        def product(direction: Sequence[Tensor]) -> Sequence[Tensor]:
            tangents = torch.autograd.grad(
                [gradients[i] for i in reached], starts, [direction[i] for i in reached], retain_graph=True
            )  # J v, one a tap
            curved = torch.autograd.grad(
                [slopes[i] for i in following], [shown[i] for i in following], tangents, retain_graph=True
            )  # C J v
            return torch.autograd.grad(
                ends, leaves, curved, retain_graph=True, allow_unused=True, materialize_grads=True
            )

        return _Piece(loss.detach(), [gradient.detach() for gradient in gradients], product)


def gradients_of(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return ``J' u`` of what taps show; taps in front of every free parameter, and inputs not reached, give zero."""
    following = [i for i, output in enumerate(outputs) if output.requires_grad]
    return torch.autograd.grad(
        [outputs[i] for i in following],
        inputs,
        [cotangents[i] for i in following],
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def joint_diagonal(
    loss: JointLoss, images: Tensor, state: Mapping[str, Tensor], generator: torch.Generator, group: int = 8
) -> dict[str, Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix of every free parameter (Hutchinson's estimator).

    For signals ``e`` at the taps with ``E[e e'] = C``, the gradient ``g = J' e`` has ``E[g g'] = J' C J``, whose
    diagonal its squares estimate. Each group of images has signals of its own, and one backward pass.

    Args:
        loss: the joint loss.
        images: (N, C, H, W), on the device of the network.
        state: where, parameter name to value.
        generator: source of the signals, drawn on its own device.
        group: images that share a backward pass: fewer give a better estimate of the same images.

    Returns:
        Parameter name to numbers >= 0 of its shape.
    """
    leaves = {name: value.detach().requires_grad_(True) for name, value in state.items()}
    sums = {name: torch.zeros_like(value) for name, value in state.items()}
    for x in torch.split(images, min(group, loss.piece)):
        with torch.enable_grad(), math_attention():
            outputs = loss.outputs(x, leaves)
            signals = loss.signals(outputs, generator)
            gradients = gradients_of(outputs, list(leaves.values()), signals)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += gradient.square()
    return {name: total / len(images) for name, total in sums.items()}
