r"""The K-step reconstruction loss of one layer: the sum over batches, and what it costs.

.. math::  L(W) = \sum_{k=0}^{K} c_k \lVert f_{l:l+k}(X; W) - Y_{l+k} \rVert^2,  \qquad  c_k = 1 / \text{elements}_k

with the sum over all calibration images, so each tap is a mean squared error (Lucas & Mazumder 2025, section 3).
The loss of one batch is in :mod:`snows_core.loss.batch_loss`, its curvature in :mod:`snows_core.loss.curvature`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from snows_core.activations.cache import LazyBatches, whole_batches
from snows_core.distributed import Processes, Share
from snows_core.loss.batch_loss import BatchLoss
from snows_core.loss.curvature import BatchCurvature, Product, linearise, random_signs, row_squares, weight_squares
from snows_core.loss.empirical_fisher import empirical_fisher
from snows_core.loss.folded_segment import FoldedSegment
from snows_core.loss.joined import LazyPieces, pieces
from snows_core.loss.options import LossOptions
from snows_core.loss.precision import tensor_cores
from snows_core.network.derivatives import is_piecewise_linear
from snows_core.network.geometry import geometry_of
from snows_core.network.graph import Network, Segment, Values
from snows_core.solvers.newton_cg import Linearisation


class ReconstructionLoss:
    """The K-step loss of a layer over calibration batches, as a function of its weight.

    Args:
        network: the traced network; layers after this one keep its dense weights.
        segment: the layer and the operations after it.
        contexts: per batch, what the segment reads from outside (:meth:`.ActivationCache.context`).
        targets: per batch, the dense network's tap outputs, in the order of ``segment.taps``.
        mask: bool, weight shape, True where a weight is free.
        options: how it is weighed and computed.
        sizes: images per batch, for the count of image products; default: the length of the first tap. A share where
            the images of batches are those of several processes: losses and so on are of all of them, in each.

    Attributes:
        folded: the segment, ready to run.
        tap_weights: c_k, one a tap.
        share: which images of each batch this process has.
        sizes: images of each batch, in all processes; ``images`` is how many there are.
        products: curvature products so far; ``image_products`` counts them times images.
    """

    def __init__(
        self,
        network: Network,
        segment: Segment,
        contexts: Sequence[Values],
        targets: Sequence[Sequence[Tensor]],
        mask: Tensor,
        options: LossOptions | None = None,
        sizes: Sequence[int] | Share | None = None,
    ) -> None:
        self.network, self.segment, self.mask = network, segment, mask
        self.contexts, self.targets = contexts, targets
        self.options = LossOptions() if options is None else options
        self.retain = self.options.retained(len(contexts))
        self._joined = LazyPieces(contexts, targets)
        self.folded = FoldedSegment(network, segment, self.options.tap_rule)
        # With piecewise linear operations only, Hessian and Gauss-Newton are one matrix; the latter is cheaper.
        self.by_fisher = False
        self.by_gauss_newton = self.options.curvature == "gauss-newton" or all(map(is_piecewise_linear, segment.nodes))
        counts = [len(batch[0]) for batch in targets] if sizes is None else sizes
        self.share = counts if isinstance(counts, Share) else Share(counts)
        self.tap_weights = tap_weights(targets, len(segment.taps), self.options.normalise, self.share)
        self.sizes, self.images = self.share.sizes, self.share.images
        self.products = 0
        self.image_products = 0

    def on(self, batches: Sequence[int]) -> ReconstructionLoss:
        """Return the same loss on a subset of the batches, each tap again a mean over the images that are left."""
        return ReconstructionLoss(
            self.network,
            self.segment,
            LazyBatches(lambda i: self.contexts[batches[i]], len(batches), keep=False),
            LazyBatches(lambda i: self.targets[batches[i]], len(batches), keep=False),
            self.mask,
            replace(self.options, retain=min(self.retain, len(batches))),
            self.share.of(batches),
        )

    def with_fisher(self) -> ReconstructionLoss:
        """Return the same loss whose products are with the empirical Fisher, its costs counted from nothing."""
        other = copy.copy(self)
        other.by_fisher, other.products, other.image_products = True, 0, 0
        return other

    def batch(self, number: int) -> BatchLoss:
        """Return the loss of the batch of a ``number``; those of all batches add up to this one."""
        share = (self.share, number) if self.share.processes.several else None
        return BatchLoss(self.folded, self.contexts[number], self.targets[number], self.tap_weights, share)

    def _parts(self, batches: Sequence[int], ends: Sequence[int] = ()) -> Iterator[tuple[list[int], BatchLoss]]:
        """Yield the losses of batches, small neighbours together up to where some ``ends``, with their numbers."""
        for numbers in pieces(self.share, batches, ends):
            if len(numbers) > 1 and (found := self._joined.read(self.share, numbers)) is not None:
                yield numbers, BatchLoss(self.folded, found[0], found[1], self.tap_weights)
            else:
                yield from (([number], self.batch(number)) for number in numbers)

    def per_tap(self, weight: Tensor, batches: int | None = None) -> list[float]:
        """Return the mean squared error of every tap; they add up to the loss.

        Args:
            weight: where.
            batches: take the first ones to stand for all; default all.
        """
        batches = len(self.contexts) if batches is None else batches
        parts = [part.squares(weight) for _, part in self._parts(self.share.held(batches))]
        total = torch.zeros(len(self.tap_weights), dtype=torch.float64)
        if parts:
            total = torch.stack(parts).cpu().double().sum(0)  # (K + 1,): the one transfer from the device
        total = self.share.processes.total(total)
        part = self.images / sum(self.sizes[:batches])
        means: list[float] = (total * part * torch.tensor(self.tap_weights, dtype=torch.float64)).tolist()
        return means

    def value(self, weight: Tensor, batches: int | None = None) -> float:
        """Return the loss at a weight over the first ``batches``, without gradients; see :meth:`per_tap`."""
        return sum(self.per_tap(weight, batches))

    def gradient(self, weight: Tensor) -> tuple[float, Tensor]:
        """Return the loss at a weight (zero off the mask), and its gradient there; no graph is kept."""
        parts = [part.gradient(weight) for _, part in self._parts(self.share.held())]
        slope = torch.stack([slope for _, slope in parts]).sum(0) if parts else torch.zeros_like(weight)
        loss, slope = self._summed([loss for loss, _ in parts], slope)
        return loss, torch.where(self.mask, slope, 0.0)

    def _summed(self, losses: Sequence[Tensor], slope: Tensor) -> tuple[float, Tensor]:
        """Return the loss and the gradient of all processes, from those of this one's batches, in one exchange."""
        loss = sum(torch.stack(list(losses)).tolist()) if losses else 0.0
        return self.share.processes.total_with_number(loss, slope)

    def linearise(self, weight: Tensor, curvature_images: int | None = None) -> Linearisation:
        """Return loss, gradient and curvature products at a weight (zero off the mask).

        Args:
            weight: where.
            curvature_images: products use at least this many images, rounded up to whole batches, scaled to stand for
                all of them (sub-sampled Newton: Byrd et al. 2011); default all. Loss and gradient always use all.
        """
        losses, gradient = [], torch.zeros_like(weight)
        sample = whole_batches(self.sizes, curvature_images)
        images = sum(self.sizes[:sample])
        kept: list[Product] = []
        retained = min(self.retain, sample)
        for numbers, batch in self._parts(self.share.held(), (retained, sample)):
            if numbers[-1] < retained:
                part = self._curved(weight, batch, numbers)
                loss, slope = part.loss, part.gradient
                kept.append(part.product)
            else:
                loss, slope = batch.gradient(weight)
            losses.append(loss)
            gradient = gradient + slope
        others = [number for number in self.share.held(sample) if number >= retained]

        def total(direction: Tensor) -> Tensor:
            self.products += 1
            self.image_products += images
            direction = torch.where(self.mask, direction, 0.0)
            result = torch.zeros_like(direction)
            with self._product_mode():
                for product in kept:
                    result += product(direction)
                for numbers, batch in self._parts(others):  # their graphs are built again, one at a time
                    result += self._curved(weight, batch, numbers).product(direction)
                result = self.share.processes.total(result)
            return torch.where(self.mask, result * (self.images / images), 0.0)

        value, gradient = self._summed(losses, gradient)
        return Linearisation(value, torch.where(self.mask, gradient, 0.0), total)

    def _curved(self, weight: Tensor, batch: BatchLoss, numbers: Sequence[int]) -> BatchCurvature:
        if self.by_fisher:
            return empirical_fisher(batch, weight, sum(self.share.own[number] for number in numbers), self.images)
        return linearise(batch, weight, self.by_gauss_newton, self.options.precision)

    def _product_mode(self) -> AbstractContextManager[None]:
        """A product runs backward through what plain attention has recorded: only its arithmetic is to be chosen."""
        return tensor_cores() if self.options.precision == "tf32" else nullcontext()

    def row_curvature(self, weight: Tensor, generator: torch.Generator, batches: int = 1) -> Tensor:
        """Estimate how strongly the loss curves in each output channel of the layer (Hutchinson's estimator).

        With random signs at every tap, the backpropagated signal at the layer's output has the second moment
        ``J' C J``; its mean square over images and positions is the factor s_i in ``H_ii ~ s_i X X'``.

        Args:
            weight: where to estimate, layer weight shape.
            generator: source of the random signs; drawn on its own device.
            batches: how many batches to use.

        Returns:
            (out,) positive numbers.
        """
        total, count = torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype), 0
        for number in range(min(batches, len(self.contexts))):
            if not self.share.own[number]:
                self._pass_over(number, generator)
                continue
            squares, places = row_squares(self.batch(number), weight, generator)
            total, count = total + squares, count + places
        all_places, total = self.share.processes.total_with_number(count, total)
        scale = total / all_places
        return torch.clamp(scale, min=float(scale.mean()) * 1e-6 + torch.finfo(scale.dtype).tiny)

    def diagonal(self, weight: Tensor, generator: torch.Generator, probes: int = 1) -> Tensor:
        """Estimate the diagonal of the Gauss-Newton matrix ``J' C J`` in the weight, without a product a weight.

        Args:
            weight: where to estimate, layer weight shape.
            generator: source of random signs; drawn on its own device.
            probes: how many signs each number at a tap gets, one after the other; the mean is taken.

        Returns:
            Numbers that are not negative, of the weight's shape; those off the mask as well.
        """
        geometry, total = geometry_of(self.segment.layer.node, weight), torch.zeros_like(weight)
        for number, images in enumerate(self.share.own):
            for _ in range(probes):
                if images:
                    total += weight_squares(self.batch(number), weight, geometry, images, generator)
                else:
                    self._pass_over(number, generator)
        return self.share.processes.total(total) / probes

    def _pass_over(self, number: int, generator: torch.Generator) -> None:
        """Draw the signs of a batch of which this process has no image, so that later ones are those of one process."""
        for held in self.share.held()[:1]:
            for target in self.targets[held]:
                shape, _ = self.share.whole_of(target.shape, held)
                rows = shape[0] // self.sizes[held] * self.sizes[number]
                random_signs(target.new_empty(rows, *shape[1:]), generator)


def tap_weights(
    targets: Sequence[Sequence[Tensor]], taps: int, normalise: bool, share: Share | None = None
) -> list[float]:
    """Return c_k = 1 / elements of every tap, divided by the variance of its targets where taps are normalised.

    Args:
        targets: per batch, one tensor a tap.
        taps: how many taps there are, K + 1.
        normalise: whether to divide by the variance over all batches, where there is any.
        share: which images of the batches this process has; default: all.
    """
    share = Share([1] * len(targets)) if share is None else share
    elements = [0] * taps
    centres: list[Tensor] = []
    sums = torch.zeros(taps, 2, dtype=torch.float64)  # of the values about a centre near their mean, and of squares
    for number in share.held():
        for k, value in enumerate(targets[number]):
            elements[k] += value.numel()
            if normalise:
                if len(centres) == k:
                    centres.append(value.mean())
                sums[k] += _moments(value, centres[k])
    middles = [float(centre) for centre in centres]
    if share.processes.several:
        elements, middles, sums = _of_all(share.processes, elements, middles or [0.0] * taps, sums)
    weights = [1.0 / count for count in elements]
    if normalise:
        for k, (first, second) in enumerate((sums / torch.tensor(elements)[:, None]).tolist()):
            variance = second - first * first
            size = second + middles[k] ** 2
            weights[k] /= variance if variance > 1e-12 * size else 1.0
    return weights


def _moments(values: Tensor, centre: Tensor) -> Tensor:
    """Return sum and sum of squares about a number near the mean, in double precision on the host."""
    distance = values - centre
    return torch.stack([distance.sum(), distance.square_().sum()]).cpu().double()


def _of_all(
    processes: Processes, elements: list[int], centres: list[float], sums: Tensor
) -> tuple[list[int], list[float], Tensor]:
    """Return counts, centres (taps,) and sums (taps, 2) about these of all processes; each had centres of its own."""
    count, centre = (torch.tensor(numbers, dtype=torch.float64) for numbers in (elements, centres))
    whole, weighed = processes.total(torch.stack([count, count * centre]))
    common = weighed / whole
    first, second = sums.unbind(1)
    gap = centre - common
    moved = torch.stack([first + count * gap, second + 2 * gap * first + count * gap.square()], 1)
    return [int(number) for number in whole], common.tolist(), processes.total(moved)
