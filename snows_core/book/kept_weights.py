"""The K-step loss of one layer as a function of the vector of its kept weights, as the notebooks on Newton write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snows_core.activations import ActivationCache, gram
from snows_core.errors import invalid_argument
from snows_core.loss import Linearisation, LossOptions, ReconstructionLoss
from snows_core.masks import parse_pattern
from snows_core.network import Network, geometry_of, patches
from snows_core.solvers import RowFactors, masked_least_squares


@dataclass(frozen=True)
class LayerLoss:
    """The loss ``L(v)`` of one layer in its n kept weights v; an ``Objective`` for the package's ``newton``.

    Attributes:
        loss: the package's loss, a function of the whole weight W.
        dense: the layer's weight W_0 before pruning.
    """

    loss: ReconstructionLoss
    dense: Tensor

    @cached_property
    def n(self) -> int:
        """Return how many weights are kept."""
        return int(self.loss.mask.sum())

    @property
    def images(self) -> int:
        """Return how many calibration images the loss is over."""
        return self.loss.images

    @property
    def operations(self) -> list[str]:
        """Return the names of the K + 1 operations whose outputs are compared, the layer's own first."""
        return [str(tap) for tap in self.loss.segment.taps]

    @property
    def start(self) -> Tensor:
        """Return the kept entries of the dense weight, (n,)."""
        return self.vector(self.dense)

    def vector(self, weight: Tensor) -> Tensor:
        """Return the kept entries of a ``weight`` as a vector (n,)."""
        return weight[self.loss.mask]

    def weight(self, v: Tensor) -> Tensor:
        """Return the layer's weight with the entries of ``v`` (n,) where weights are kept, and zeros elsewhere."""
        places = self.loss.mask.flatten().nonzero()[:, 0]
        flat = torch.zeros(self.loss.mask.numel(), dtype=v.dtype, device=v.device)
        return flat.index_copy(0, places, v).view(self.loss.mask.shape)

    def compared(self, v: Tensor) -> list[tuple[Tensor, Tensor, int]]:
        """Run the layer with kept weights ``v`` and the K operations behind it; PyTorch can differentiate it twice.

        Args:
            v: (n,) kept weights.

        Returns:
            For every batch and every compared operation: its activation, the dense network's activation there (the
            target), and the number of images in the batch.
        """
        segment, found = self.loss.segment, []
        for context, targets in zip(self.loss.contexts, self.loss.targets, strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                values = self.loss.network.run(
                    segment.nodes, dict(context), {segment.layer.weight_name: self.weight(v)}
                )
            found += [(values[tap], target, len(target)) for tap, target in zip(segment.taps, targets, strict=True)]
        return found

    def value(self, v: Tensor) -> float:
        """Return the loss at ``v``, by the package."""
        return self.loss.value(self.weight(v))

    def linearise(self, v: Tensor, curvature_images: int | None = None) -> Linearisation:
        """Return loss, gradient (n,) and curvature product of the package at ``v``.

        Args:
            v: (n,) where.
            curvature_images: how many images the products are taken from; None for all.

        Returns:
            The three; the product maps a vector (n,) to a vector (n,).
        """
        at = self.loss.linearise(self.weight(v), curvature_images)
        return Linearisation(at.loss, self.vector(at.gradient), lambda u: self.vector(at.product(self.weight(u))))

    def on(self, batches: Sequence[int]) -> LayerLoss:
        """Return the same loss on some of its ``batches``, again a mean over their images."""
        return LayerLoss(self.loss.on(batches), self.dense)

    def gauss_newton(self) -> LayerLoss:
        """Return the same loss with products of the Gauss-Newton matrix instead of the Hessian."""
        loss = self.loss
        options = replace(loss.options, curvature="gauss-newton")
        other = ReconstructionLoss(
            loss.network, loss.segment, loss.contexts, loss.targets, loss.mask, options, loss.share
        )
        return LayerLoss(other, self.dense)

    def gram(self) -> Tensor:
        """Return the Gram matrix A of the layer's input over all images and positions, (groups, inputs, inputs)."""
        node = self.loss.segment.layer.node
        shape = geometry_of(node, self.loss.mask.float())
        inputs = (context[node.all_input_nodes[0]] for context in self.loss.contexts)
        return torch.stack([gram(patches(x, shape)) for x in inputs]).sum(0)

    def strengths(self, v: Tensor, seed: int) -> Tensor:
        """Return for each output row how strongly its errors reach the compared activations, by random signs.

        Args:
            v: (n,) where.
            seed: of the random signs.

        Returns:
            (out,) positive numbers, from the first batch of images.
        """
        return self.loss.row_curvature(self.weight(v), torch.Generator().manual_seed(seed))

    def row_factors(self, ridge: float, strengths: Tensor | None = None) -> RowFactors:
        """Return Cholesky factors of every row's Gram matrix on that row's kept inputs.

        Args:
            ridge: added to the diagonal, as a fraction of its mean.
            strengths: (out,) what each row's matrix is multiplied by; default 1.
        """
        return RowFactors(self.gram(), self.loss.mask.flatten(1), damping=ridge, scale=strengths)

    def least_squares(self, ridge: float) -> Tensor:
        """Return the kept weights (n,) that fit the layer's own output best: K = 0, with a ``ridge``."""
        found = masked_least_squares(self.row_factors(ridge), self.dense.flatten(1))
        return self.vector(found.view_as(self.dense))

    def preconditioner(self, ridge: float, strengths: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return ``r -> M^-1 r`` on vectors (n,), with the row factors of :meth:`row_factors` as M.

        Args:
            ridge: see :meth:`row_factors`.
            strengths: likewise.
        """
        factors = self.row_factors(ridge, strengths)
        return lambda r: self.vector(factors.solve(self.weight(r).flatten(1)).view_as(self.dense))


def layer_loss(model: nn.Module, layer: str, pattern: str, k: int, images: Tensor, batch: int) -> LayerLoss:
    """Build the K-step loss of one layer of a network, on a mask of its largest weights.

    Args:
        model: the dense network, in eval mode.
        layer: the layer's name.
        pattern: of the mask, for instance "1:4".
        k: how many operations behind the layer are compared as well.
        images: (N, C, H, W), calibration images of the network's number type.
        batch: images that are computed at a time.

    Returns:
        The loss; its inputs and targets are those of the dense network.

    Raises:
        SnowsError: when the network has no such layer.
    """
    network = Network(model)
    found = [candidate for candidate in network.layers if candidate.name == layer]
    if not found:
        raise invalid_argument("layer", repr(layer), f"one of {', '.join(each.name for each in network.layers)}")
    segment = network.segment(found[0], k)
    cache = ActivationCache(network, list(images.split(batch)))
    cache.advance(network.index[found[0].node])  # run the dense network up to the layer
    numbers = range(len(cache.values))
    contexts = [cache.context(segment, i) for i in numbers]
    targets = [cache.taps(segment, i) for i in numbers]
    dense = network.weight(found[0])
    mask = parse_pattern(pattern).mask(dense.abs())
    return LayerLoss(ReconstructionLoss(network, segment, contexts, targets, mask, LossOptions()), dense)
