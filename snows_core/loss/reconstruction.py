r"""The K-step reconstruction loss of one layer: value, gradient, and exact products with its curvature.

.. math::  L(W) = \sum_{k=0}^{K} c_k \lVert f_{l:l+k}(X; W) - Y_{l+k} \rVert^2,  \qquad  c_k = 1 / \text{elements}_k

with the sum over all calibration images, so each tap is a mean squared error (Lucas & Mazumder 2025).
The Hessian is never formed: a product ``H v`` is one backward pass through the retained graph of the gradient
(Pearlmutter 1994), with the whole weight at once, so no cross term is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from snows_core.activations.cache import LazyBatches, whole_batches
from snows_core.loss.folded_segment import FoldedSegment
from snows_core.loss.precision import tensor_cores
from snows_core.network.derivatives import is_piecewise_linear
from snows_core.network.graph import Network, Segment, Values
from snows_core.settings import Curvature, Precision, TapRule

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Linearisation:
    """Loss, gradient and curvature at one weight.

    Attributes:
        loss: value of the K-step loss, all images.
        gradient: same shape as the weight, zero off the mask.
        product: maps a direction (weight shape) to curvature times direction, masked on both sides.
    """

    loss: float
    gradient: Tensor
    product: Product


class ReconstructionLoss:
    """The K-step loss of a layer over calibration batches, as a function of its weight.

    Args:
        network: the traced network; layers after this one keep its dense weights.
        segment: the layer and the operations after it.
        contexts: per batch, what the segment reads from outside (:meth:`.ActivationCache.context`).
        targets: per batch, the dense network's tap outputs, in the order of ``segment.taps``.
        mask: bool, weight shape, True where a weight is free.
        curvature: "hessian" (exact) or "gauss-newton" (positive semi-definite); equal in a ReLU network in eval mode.
        normalise: divide c_k by the variance of that tap's targets, so that every tap starts from the same scale.
        retain: how many batches keep their graph for all products (fast); the others rebuild it in each (little
            memory). True is all, False none.
        sizes: images per batch, for the count of image products; default: the length of the first tap.
        precision: of the curvature products; losses and gradients always have that of the weights.

    Attributes:
        products: curvature products so far; ``image_products`` counts them times images.
    """

    def __init__(
        self,
        network: Network,
        segment: Segment,
        contexts: Sequence[Values],
        targets: Sequence[Sequence[Tensor]],
        mask: Tensor,
        curvature: Curvature = "hessian",
        retain: bool | int = True,
        rule: TapRule = "all",
        normalise: bool = False,
        sizes: Sequence[int] | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.network, self.segment, self.rule = network, segment, rule
        self.program = FoldedSegment(network, segment, rule)
        self.contexts, self.targets = contexts, targets
        self.mask, self.curvature = mask, curvature
        self.retain = len(contexts) if retain is True else int(retain)
        # With piecewise linear operations only, Hessian and Gauss-Newton are one matrix; the latter is cheaper.
        self.by_gauss_newton = curvature == "gauss-newton" or all(map(is_piecewise_linear, segment.nodes))
        self.normalise, self.precision = normalise, precision
        self.tap_weights = self._tap_weights()
        self.sizes = [len(batch[0]) for batch in targets] if sizes is None else list(sizes)
        self.images = sum(self.sizes)
        self.products = 0
        self.image_products = 0

    def on(self, batches: Sequence[int]) -> ReconstructionLoss:
        """Return the same loss on a subset of the batches, each tap again a mean over the images that are left."""
        contexts = LazyBatches(lambda i: self.contexts[batches[i]], len(batches), keep=False)
        targets = LazyBatches(lambda i: self.targets[batches[i]], len(batches), keep=False)
        return ReconstructionLoss(
            self.network,
            self.segment,
            contexts,
            targets,
            self.mask,
            self.curvature,
            min(self.retain, len(batches)),
            self.rule,
            self.normalise,
            [self.sizes[i] for i in batches],
            self.precision,
        )

    def _tap_weights(self) -> list[float]:
        """Return c_k = 1 / elements, divided by the variance of the target where taps are normalised."""
        elements = [0] * len(self.segment.taps)
        centres: list[Tensor] = []
        sums = torch.zeros(len(elements), 2, dtype=torch.float64)
        for batch in self.targets:
            for k, value in enumerate(batch):
                elements[k] += value.numel()
                if self.normalise:
                    if len(centres) == k:
                        centres.append(value.mean())
                    sums[k] += _moments(value, centres[k])
        weights = [1.0 / count for count in elements]
        if self.normalise:
            for k, (first, second) in enumerate((sums / torch.tensor(elements)[:, None]).tolist()):
                variance = second - first * first
                size = second + float(centres[k]) ** 2
                weights[k] /= variance if variance > 1e-12 * size else 1.0
        return weights

    def _math_attention(self) -> AbstractContextManager[None]:
        """Fused attention kernels have no second derivative: use the plain one here, and only here."""
        return sdpa_kernel(SDPBackend.MATH)

    def errors(self, outputs: Sequence[Tensor], batch: int) -> list[Tensor]:
        """Return, tap by tap, what is squared and averaged: output minus target, scaled by the tap rule."""
        pairs = zip(outputs, self.targets[batch], strict=True)
        return [self._error(k, output, target) for k, (output, target) in enumerate(pairs)]

    def _error(self, k: int, output: Tensor, target: Tensor) -> Tensor:
        difference, scale = output - target, self.program.tap_scales[k]
        return difference if scale is None else difference * scale.view(1, -1, *(1,) * (difference.ndim - 2))

    def _squared(self, k: int, output: Tensor, target: Tensor) -> Tensor:
        if self.program.tap_scales[k] is None:  # in one pass over the numbers
            return functional.mse_loss(output, target, reduction="sum")
        return self._error(k, output, target).square().sum()

    @torch.no_grad()
    def per_tap(self, weight: Tensor, batches: int | None = None) -> list[float]:
        """Return the mean squared error of every tap; they add up to the loss.

        Args:
            weight: where.
            batches: take the first ones to stand for all; default all.
        """
        parts = []
        batches = len(self.contexts) if batches is None else batches
        for batch in range(batches):
            squares: dict[int, Tensor] = {}
            targets = self.targets[batch]
            for k, output in self.program.stream(self.contexts[batch], weight):
                squares[k] = self._squared(k, output, targets[k])
            parts.append(torch.stack([squares[k] for k in range(len(squares))]))
        total = torch.stack(parts).cpu().double().sum(0)  # the one transfer from the device
        share = self.images / sum(self.sizes[:batches])
        return (total * share * torch.tensor(self.tap_weights, dtype=torch.float64)).tolist()

    def value(self, weight: Tensor, batches: int | None = None) -> float:
        """Return the loss at a weight, without gradients; arguments as in :meth:`per_tap`."""
        return sum(self.per_tap(weight, batches))

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
        for batch in range(len(self.contexts)):
            retained = batch < min(self.retain, sample)
            part, slope, product = self._linearise_batch(weight, batch, curved=retained)
            losses.append(part)
            gradient = gradient + slope
            if product is not None:
                kept.append(product)

        def total(direction: Tensor) -> Tensor:
            self.products += 1
            self.image_products += images
            direction = torch.where(self.mask, direction, 0.0)
            result = torch.zeros_like(direction)
            with self._product_mode():
                for product in chain(kept, self._rebuilt(weight, sample)):
                    result += product(direction)
            return torch.where(self.mask, result * (self.images / images), 0.0)

        return Linearisation(sum(torch.stack(losses).tolist()), torch.where(self.mask, gradient, 0.0), total)

    def _product_mode(self) -> AbstractContextManager[None]:
        """A product runs backward through what plain attention has recorded: only its arithmetic is to be chosen."""
        return tensor_cores() if self.precision == "tf32" else nullcontext()

    def _rebuilt(self, weight: Tensor, sample: int) -> Iterator[Product]:
        for batch in range(self.retain, sample):
            product = self._linearise_batch(weight, batch, curved=True)[2]
            assert product is not None, "a curved batch has a product"
            yield product

    def _linearise_batch(self, weight: Tensor, batch: int, curved: bool) -> tuple[Tensor, Tensor, Product | None]:
        """Return loss, gradient and curvature product of one batch; the product holds that batch's graph."""
        free = weight.detach().clone().requires_grad_(True)
        with torch.enable_grad(), self._math_attention():
            if curved and self.precision != "bfloat16":
                return self.curved_batch(free, batch)
            loss, _ = self._loss(free, batch)
            (gradient,) = torch.autograd.grad(loss, free)
            product = None
            if curved:  # a graph of its own, as loss and gradient stay in full precision
                with torch.autocast(weight.device.type, torch.bfloat16):
                    product = self.curved_batch(free, batch)[2]
        return loss.detach(), gradient, product

    def _loss(self, free: Tensor, batch: int) -> tuple[Tensor, list[Tensor]]:
        errors = self.errors(self.program.run(self.contexts[batch], free), batch)
        return sum(c * error.square().sum() for c, error in zip(self.tap_weights, errors, strict=True)), errors

    def curved_batch(self, free: Tensor, batch: int) -> tuple[Tensor, Tensor, Product]:
        """Return loss, gradient and product of one batch at ``free``, a leaf; call it under ``enable_grad``."""
        loss, errors = self._loss(free, batch)
        if self.by_gauss_newton:
            return loss.detach(), *self._gauss_newton(free, errors)
        (gradient,) = torch.autograd.grad(loss, free, create_graph=True)

        def product(direction: Tensor) -> Tensor:
            return torch.autograd.grad(gradient, free, direction, retain_graph=True)[0]

        return loss.detach(), gradient.detach(), product

    def _gauss_newton(self, free: Tensor, errors: list[Tensor]) -> tuple[Tensor, Product]:
        """Product ``J' C J v``: ``J v`` by differentiating ``J' u`` in u, then one backward pass (Schraudolph 2002)."""
        factors = [2.0 * weight for weight in self.tap_weights]
        # Not leaves: a graph holds those with their numbers, and of these only the places in it are needed.
        origin = free.new_zeros((), requires_grad=True)
        cotangents = [(f * error.detach()) + origin for f, error in zip(factors, errors, strict=True)]
        (gradient,) = torch.autograd.grad(errors, free, cotangents, create_graph=True)
        starts, ends = ([get_gradient_edge(tensor) for tensor in tensors] for tensors in (cotangents, errors))

        def product(direction: Tensor) -> Tensor:
            tangents = torch.autograd.grad(gradient, starts, direction, retain_graph=True)
            weighted = [factor * tangent for factor, tangent in zip(factors, tangents, strict=True)]
            return torch.autograd.grad(ends, free, weighted, retain_graph=True)[0]

        return gradient.detach(), product

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
        for batch in range(min(batches, len(self.contexts))):
            with torch.enable_grad(), self._math_attention():
                values, node = self.program.start(self.contexts[batch], weight.detach())
                free = values[node] = values[node].detach().requires_grad_(True)
                errors = self.errors(self.program.finish(values, node), batch)
                signs = [
                    _signs(error, generator) * (2 * c) ** 0.5 for error, c in zip(errors, self.tap_weights, strict=True)
                ]
                (signal,) = torch.autograd.grad(errors, free, signs)
            signal = signal * self.program.layer_scale(signal)
            channels = signal.transpose(0, 1) if weight.ndim > 2 else signal.transpose(0, -1)
            channels = channels.reshape(weight.shape[0], -1)
            total, count = total + channels.square().sum(1), count + channels.shape[1]
        scale = total / count
        return torch.clamp(scale, min=float(scale.mean()) * 1e-6 + torch.finfo(scale.dtype).tiny)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw random signs of the shape, device and dtype of a tensor."""
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8, device=generator.device)
    return bits.to(like).mul_(2).sub_(1)


def _moments(values: Tensor, centre: Tensor) -> Tensor:
    """Return sum and sum of squares about a number near the mean, in double precision on the host."""
    distance = values - centre
    return torch.stack([distance.sum(), distance.square_().sum()]).cpu().double()
