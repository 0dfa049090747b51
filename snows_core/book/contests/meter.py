"""What a minimiser asks of a loss, counted in passes through the network, which are the same on every machine.

One *unit* is one forward and one backward pass of all calibration images through a layer's segment. A value of the loss
is half a unit, a gradient one (the value comes along), a curvature product one where the graph of the gradient is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snows_core.book.contests.fits import LayerFit
from snows_core.loss import ReconstructionLoss
from snows_core.solvers import Linearisation

VALUE, GRADIENT, PRODUCT, PROBE = 0.5, 1.0, 1.0, 1.0
"""Units of a loss, a gradient, a curvature product, and of the probe behind the preconditioner's scale."""


def clock(device: torch.device | str = "cpu") -> float:
    """Return seconds: of the CPU for this process, or by the wall once a GPU has done what was asked of it.

    Args:
        device: where the work is done.
    """
    if torch.device(device).type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device | str = "cpu", repeats: int = 5) -> float:
    """Return the least of several times that some work takes, in seconds.

    Args:
        work: called without arguments.
        device: where it computes.
        repeats: how often it is done.
    """
    times = []
    for _ in range(repeats):
        began = clock(device)
        work()
        times.append(clock(device) - began)
    return min(times)


@dataclass(frozen=True)
class Reached:
    """A point on the way of a minimiser.

    Attributes:
        units: spent so far.
        image_products: curvature products so far, times images.
        seconds: since the start, without those of :meth:`Meter.free_value`.
        loss: the loss there.
    """

    units: float
    image_products: int
    seconds: float
    loss: float


class Meter:
    """A layer's loss as an objective that counts what it is asked, and keeps the losses that were found on the way.

    Args:
        fit: the layer.
        loss: whose products are counted; default the layer's own loss.
        paid: units spent before, as for the probe of the preconditioner.

    Attributes:
        images: how many images the loss is over.
        units: spent so far.
        products: curvature products so far.
        trace: the points that :meth:`note` was told of, the start first.
    """

    def __init__(self, fit: LayerFit, loss: ReconstructionLoss | None = None, paid: float = 0.0) -> None:
        self.loss = fit.loss if loss is None else loss
        self.device, self.images = fit.start.device, self.loss.images
        self.units, self.products = paid, 0
        self.trace = [Reached(0.0, 0, 0.0, self.loss.value(fit.start))]
        self._idle, self._began = 0.0, clock(self.device)

    def note(self, loss: float) -> None:
        """Keep a ``loss`` that was reached, with what it has cost."""
        seconds = clock(self.device) - self._began - self._idle
        self.trace.append(Reached(self.units, self.products * self.images, seconds, loss))

    def value(self, weight: Tensor) -> float:
        """Return the loss at a ``weight``."""
        self.units += VALUE
        return self.loss.value(weight)

    def free_value(self, weight: Tensor) -> float:
        """Return the loss at a ``weight`` for the record alone: neither units nor seconds are counted."""
        began = clock(self.device)
        value = self.loss.value(weight)
        self._idle += clock(self.device) - began
        return value

    def gradient(self, weight: Tensor) -> tuple[float, Tensor]:
        """Return loss and gradient at a ``weight``."""
        self.units += GRADIENT
        return self.loss.gradient(weight)

    def linearise(self, weight: Tensor, curvature_images: int | None = None) -> Linearisation:
        """Return loss, gradient and counted curvature products at a weight.

        Args:
            weight: where.
            curvature_images: how many of the images products are taken from; None for all.
        """
        self.units += GRADIENT
        at = self.loss.linearise(weight, curvature_images)

        def product(vector: Tensor) -> Tensor:
            self.units, self.products = self.units + PRODUCT, self.products + 1
            return at.product(vector)

        return Linearisation(at.loss, at.gradient, product)


class Uncurved:
    """A metered loss with M, the preconditioner's own matrix, in the place of the curvature: a control.

    Its Newton step is the preconditioned gradient ``-M^-1 g``, which takes no product.

    Args:
        meter: counts values and gradients.
        fit: the layer, which has M.
    """

    def __init__(self, meter: Meter, fit: LayerFit) -> None:
        self.meter, self.fit, self.images = meter, fit, meter.images

    def value(self, weight: Tensor) -> float:
        """Return the loss at a ``weight``."""
        return self.meter.value(weight)

    def linearise(self, weight: Tensor, curvature_images: int | None = None) -> Linearisation:
        """Return loss and gradient at a weight, and products with M, which are free.

        Args:
            weight: where.
            curvature_images: not used; M is there already.
        """
        return Linearisation(*self.meter.gradient(weight), self.fit.times)
