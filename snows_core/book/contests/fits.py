"""The K-step problems of single layers, from the package's own parts, so that any minimiser can be tried on them.

A sweep meets one layer after the other, behind layers that are pruned already. :func:`layer_fits` yields what it meets:
the loss, the least-squares weight that it starts from, and the matrix that preconditions it. The weights of earlier
layers are looked up when a layer is reached, so a loop that adds its solution to them is a sweep of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from snows_core.activations import ActivationCache
from snows_core.loss import LossOptions, ReconstructionLoss
from snows_core.masks import parse_pattern
from snows_core.methods.layerwise import least_squares
from snows_core.methods.problem import LayerProblem, LayerValues
from snows_core.network import Network
from snows_core.settings import get_recipe
from snows_core.solvers import RowFactors


@dataclass(frozen=True)
class LayerFit:
    """One layer to be fitted.

    Attributes:
        name: the layer's name.
        loss: its K-step loss on the calibration images, every term divided by the variance of its target.
        start: the least-squares weight (K = 0), zero off the mask.
        factors: Cholesky factors of M, the damped Gram matrix of the layer's inputs on each row's kept weights, scaled
            to the curvature of that row.
    """

    name: str
    loss: ReconstructionLoss
    start: Tensor
    factors: RowFactors

    def solve(self, vector: Tensor) -> Tensor:
        """Return ``M^-1`` times a ``vector`` of the weight's shape, zero off the mask."""
        return self.factors.solve(vector.flatten(1)).view_as(vector)

    def times(self, vector: Tensor) -> Tensor:
        """Return M times a ``vector`` of the weight's shape, zero off the mask."""
        return self.factors.times(vector.flatten(1)).view_as(vector)


def layer_losses(
    network: Network,
    names: Collection[str],
    pattern: str,
    k: int,
    images: Tensor,
    weights: Mapping[str, Tensor] | None = None,
    batch: int = 64,
) -> Iterator[tuple[LayerProblem, ReconstructionLoss]]:
    """Yield the K-step losses of several layers, front to back, with magnitude masks.

    Args:
        network: the traced network, dense weights.
        names: of the layers.
        pattern: of the masks, as "1:16"; each layer by itself.
        k: how many operations behind a layer its loss looks at; fewer where the network ends before.
        images: calibration images (N, C, H, W), on the network's device.
        weights: pruned weights of earlier layers by parameter name; read when the layer is reached. Default: dense.
        batch: images at once.

    Yields:
        The problem as a method of the package sees it, and its loss. Inputs are those of the pruned network, targets
        those of the dense one on its own inputs.
    """
    own, dense = (ActivationCache(network, list(images.split(batch))) for _ in range(2))
    own.weights = dict() if weights is None else weights  # type: ignore[assignment] # read only; a caller may add
    count = range(len(own.values))
    for number, layer in enumerate(layer for layer in network.layers if layer.name in names):
        for cache in (own, dense):
            cache.advance(network.index[layer.node])
        segment = network.segment(layer, k)
        mask = parse_pattern(pattern).mask(network.weight(layer).abs())
        generator = torch.Generator().manual_seed(number)
        problem = LayerProblem(network, (segment,), mask, LayerValues(own, dense, [list(count)]), generator)
        contexts = [own.context(segment, i) for i in count]
        targets = [dense.taps(segment, i) for i in count]
        yield problem, ReconstructionLoss(network, segment, contexts, targets, mask, LossOptions(normalise=True))


def layer_fits(
    network: Network,
    names: Collection[str],
    pattern: str,
    k: int,
    images: Tensor,
    weights: Mapping[str, Tensor] | None = None,
    batch: int = 64,
) -> Iterator[LayerFit]:
    """Yield the layers of :func:`layer_losses` with the start and the preconditioner that the package gives them.

    Args:
        network: the traced network, dense weights.
        names: of the layers.
        pattern: of the masks.
        k: how many operations behind a layer its loss looks at.
        images: calibration images (N, C, H, W), on the network's device.
        weights: pruned weights of earlier layers by parameter name.
        batch: images at once.

    Yields:
        The fits, front to back.
    """
    for problem, loss in layer_losses(network, names, pattern, k, images, weights, batch):
        factors, start = least_squares(problem, get_recipe("fast").ridge)
        factors.scale = loss.row_curvature(start, problem.generator)
        yield LayerFit(problem.name, loss, start, factors)


def split_images(loss: ReconstructionLoss, parts: int) -> ReconstructionLoss:
    """Return the same loss with its images in ``parts`` batches of about equal size; those add up to it.

    Args:
        loss: of a network whose values have the images along axis 0.
        parts: at most as many as there are images.

    Returns:
        The loss, without kept graphs.
    """
    contexts = {node: torch.cat([context[node] for context in loss.contexts]) for node in loss.contexts[0]}
    targets = [torch.cat(tap) for tap in zip(*loss.targets, strict=True)]
    pieces = torch.arange(loss.images).tensor_split(parts)
    return ReconstructionLoss(
        loss.network,
        loss.segment,
        [{node: value[piece] for node, value in contexts.items()} for piece in pieces],
        [[tap[piece] for tap in targets] for piece in pieces],
        loss.mask,
        LossOptions(normalise=loss.options.normalise, retain=False),
    )


def image_gradients(loss: ReconstructionLoss, weight: Tensor) -> Tensor:
    """Return the gradient of every image's loss at a weight, zero off the mask; their mean is that of the loss.

    Args:
        loss: the K-step loss L, the mean over N images of L_i.
        weight: where, zero off the mask.

    Returns:
        (N, weights), row i the gradient of L_i.
    """
    single = split_images(loss, loss.images)
    rows = [single.batch(image).gradient(weight)[1].flatten() for image in range(loss.images)]
    return torch.stack(rows) * loss.images * loss.mask.flatten()
