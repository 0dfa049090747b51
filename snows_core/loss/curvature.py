"""Curvature of the loss of one batch: exact products with its Hessian or Gauss-Newton matrix, and each row's size.

Neither matrix is ever formed. A product ``H v`` is one backward pass through the retained graph of the gradient
(Pearlmutter 1994), with the whole weight at once, so that no cross term is lost. With ``r`` the errors of all taps,
``J`` their Jacobian in the weight and ``C`` the diagonal matrix of the factors ``2 c_k``, the gradient is ``J' C r``
and the Gauss-Newton matrix ``J' C J``: the Hessian without the terms in second derivatives of ``r`` (Schraudolph 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from snows_core.activations.gram_matrices import PIECE
from snows_core.distributed import Share
from snows_core.loss.batch_loss import BatchLoss, math_attention
from snows_core.network.geometry import Geometry, columns_of
from snows_core.network.nodes import first_input
from snows_core.settings import Precision

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BatchCurvature:
    """What one batch has to say at one weight.

    Attributes:
        loss: a scalar.
        gradient: of the weight's shape.
        product: maps a direction of that shape to curvature times direction; it holds the batch's graph.
    """

    loss: Tensor
    gradient: Tensor
    product: Product


def linearise(batch: BatchLoss, weight: Tensor, by_gauss_newton: bool, precision: Precision) -> BatchCurvature:
    """Return loss, gradient and curvature product of a batch at a weight.

    Args:
        batch: the loss.
        weight: where.
        by_gauss_newton: whether products are with the Gauss-Newton matrix, or with the Hessian.
        precision: of the products; "tf32" is the business of who calls them.

    Returns:
        The three, for that batch alone.
    """
    free = weight.detach().clone().requires_grad_(True)
    curved = gauss_newton if by_gauss_newton else hessian
    with torch.enable_grad(), math_attention():
        if precision != "bfloat16":
            return curved(batch, free)
        loss, gradient = batch.gradient(weight)
        # Products have a graph of their own, as loss and gradient stay in full precision.
        with torch.autocast(weight.device.type, torch.bfloat16):
            return BatchCurvature(loss, gradient, curved(batch, free).product)


def hessian(batch: BatchLoss, free: Tensor) -> BatchCurvature:
    """Return loss, gradient and ``v -> H v`` at ``free``, a leaf; call it under ``enable_grad``.

    The product differentiates ``g(W)'v`` in W (Pearlmutter 1994, by reverse mode on both levels).
    """
    loss, _ = batch.at(free)
    (gradient,) = torch.autograd.grad(loss, free, create_graph=True)

    def product(direction: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, free, direction, retain_graph=True)[0]

    return BatchCurvature(loss.detach(), gradient.detach(), product)


def gauss_newton(batch: BatchLoss, free: Tensor) -> BatchCurvature:
    """Return loss, gradient and ``v -> J' C J v`` at ``free``, a leaf; call it under ``enable_grad``.

    ``J v`` comes from differentiating ``J' u`` in u, and ``J' (C J v)`` from one backward pass (Schraudolph 2002).
    """
    loss, errors = batch.at(free)
    factors = [2.0 * weight for weight in batch.tap_weights]
    # Not leaves: a graph holds those with their numbers, and of these only the places in it are needed.
    origin = free.new_zeros((), requires_grad=True)
    cotangents = [(f * error.detach()) + origin for f, error in zip(factors, errors, strict=True)]  # u = C r
    (gradient,) = torch.autograd.grad(errors, free, cotangents, create_graph=True)
    starts, ends = ([get_gradient_edge(tensor) for tensor in tensors] for tensors in (cotangents, errors))

    def product(direction: Tensor) -> Tensor:
        tangents = torch.autograd.grad(gradient, starts, direction, retain_graph=True)  # J v, one a tap
        weighted = [factor * tangent for factor, tangent in zip(factors, tangents, strict=True)]
        return torch.autograd.grad(ends, free, weighted, retain_graph=True)[0]

    return BatchCurvature(loss.detach(), gradient.detach(), product)


def row_squares(batch: BatchLoss, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
    """Backpropagate random signs from every tap to the layer's output, and sum the squares of what arrives.

    For signs ``e`` with ``E[e e'] = I``, the signal ``s = J' C^(1/2) e`` (J: of the taps in the layer's output) has
    ``E[s s'] = J' C J``, whose diagonal its squares estimate (Hutchinson's estimator).

    Args:
        batch: the loss.
        weight: where, (out, ...).
        generator: source of the random signs; drawn on its own device.

    Returns:
        Sums of squares over images and positions, (out,), and how many images times positions there are.
    """
    signal = _signal(batch, weight, generator)
    channels = signal.transpose(0, 1) if weight.ndim > 2 else signal.transpose(0, -1)
    channels = channels.reshape(weight.shape[0], -1)  # (out, N * positions)
    return channels.square().sum(1), channels.shape[1]


def weight_squares(
    batch: BatchLoss, weight: Tensor, geometry: Geometry, images: int, generator: torch.Generator
) -> Tensor:
    """Backpropagate random signs from every tap to the weight, image by image, and sum the squares of what arrives.

    As signs are independent, the expectation of every image's squares is its part of the diagonal of ``J' C J`` (J: of
    the taps in the weight), whatever the number of images; squaring image by image makes the estimate less noisy.

    Args:
        batch: the loss.
        weight: where, (out, in / groups, ...).
        geometry: how the layer reads its input.
        images: N, how many images the batch holds.
        generator: source of the random signs; drawn on its own device.

    Returns:
        An estimate of the diagonal, of the weight's shape. Where axis 0 of the input is not of images (tokens first),
        the batch's gradient is squared as a whole.
    """
    signal = _signal(batch, weight, generator)
    x = batch.context[first_input(batch.folded.segment.layer.node)]
    by_image = len(x) == images
    if geometry.kernel is None:
        by_image &= images not in x.shape[1:-1]  # else axis 0 may be of tokens
        x, signal = (values.reshape(len(values), -1, values.shape[-1]) for values in (x, signal))
    total = torch.zeros_like(weight.flatten(1))  # (out, d)
    step = _images_at_once(x, signal, geometry, total)
    for start in range(0, len(x), step):
        part, back = x[start : start + step], signal[start : start + step]
        if geometry.kernel is None:
            gradients = back.mT @ part  # (n, out, d)
        else:
            columns = columns_of(part, geometry)  # (n, groups, d, positions)
            back = back.reshape(*columns.shape[:2], -1, columns.shape[-1])  # (n, groups, out / groups, positions)
            gradients = (back @ columns.mT).flatten(1, 2)
        total += (gradients.square_() if by_image else gradients).sum(0)
    return (total if by_image else total.square()).view_as(weight)


def _images_at_once(x: Tensor, signal: Tensor, geometry: Geometry, weight: Tensor) -> int:
    """Return how many images' inputs as matrices, and gradients of a ``weight`` (out, d), fit in memory together."""
    numbers = weight.numel()
    if geometry.kernel is not None:
        numbers += weight.shape[1] * geometry.groups * signal[0, 0].numel()
    return max(1, int(PIECE / (numbers * x.element_size())))


def _signal(batch: BatchLoss, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return what random signs at the taps, times the roots of C, become at the layer's output, of its shape."""
    folded = batch.folded
    with torch.enable_grad(), math_attention():
        values, node = folded.start(batch.context, weight.detach())
        free = values[node] = values[node].detach().requires_grad_(True)  # (N, out, *positions) or (N, ..., out)
        errors = batch.errors(folded.finish(values, node))
        factors = [(2 * c) ** 0.5 for c in batch.tap_weights]
        signs = [
            random_signs(error, generator, batch.share) * factor for error, factor in zip(errors, factors, strict=True)
        ]
        signal: Tensor = torch.autograd.grad(errors, free, signs)[0]
    return signal * folded.layer_scale(signal)


def random_signs(like: Tensor, generator: torch.Generator, share: tuple[Share, int] | None = None) -> Tensor:
    """Draw random signs of the shape, device and dtype of a tensor.

    Args:
        like: the tensor.
        generator: drawn on its own device.
        share: which images of a larger batch it is of, and the number of that batch: signs are drawn for all of its
            images, so that each has the same ones whatever the number of processes; None where it is of all.

    Returns:
        Numbers of 1 and -1.
    """
    bits = _bits(like.shape, generator) if share is None else _shared_bits(like.shape, generator, *share)
    return bits.to(like).mul_(2).sub_(1)


def _bits(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.int8, device=generator.device)


def _shared_bits(shape: Sequence[int], generator: torch.Generator, share: Share, batch: int) -> Tensor:
    whole, axis = share.whole_of(shape, batch)
    return share.pick(_bits(whole, generator), batch, axis)
