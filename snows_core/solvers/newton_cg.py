"""Hessian-free Newton: directions by conjugate gradients, a truncated Newton loop around them.

It works on tensors of any one shape and returns its solution, why it stopped and what it spent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from snows_core.distributed import current
from snows_core.settings import NewtonOptions
from snows_core.solvers.conjugate_gradients import CGSolution, StopReason, conjugate_gradients, dot
from snows_core.solvers.line_search import LineSearch, armijo

# A step that gains more or less than the quadratic model predicted, by this share, tells that the sample is too small.
MISLEADS = 0.1
GROWTH = 4  # what a sample that misled is multiplied by: a step on one that misleads again is lost


@dataclass(frozen=True)
class Linearisation:
    """Loss, gradient and curvature at one weight.

    Attributes:
        loss: the loss over all images.
        gradient: same shape as the weight, zero off the mask.
        product: maps a direction (weight shape) to curvature times direction, masked on both sides.
    """

    loss: float
    gradient: Tensor
    product: Callable[[Tensor], Tensor]


class Objective(Protocol):
    """A loss that can be evaluated and linearised."""

    @property
    def images(self) -> int:
        """How many images the loss is over."""

    def value(self, weight: Tensor) -> float:
        """Return the loss at a ``weight``."""

    def linearise(self, weight: Tensor, curvature_images: int | None = None) -> Linearisation:
        """Return loss, gradient and curvature product at one weight.

        Args:
            weight: where.
            curvature_images: how many of the images the product is taken from; None for all.

        Returns:
            The three; the product is a function of a direction.
        """


@dataclass(frozen=True)
class NewtonSolution:
    """What the Newton loop found.

    Attributes:
        weight: the best weight; its loss is never above the start's.
        stop: why the loop ended.
        losses: the loss at the start and after each accepted step.
        steps: how many Newton steps were accepted.
        products: how many curvature products were taken.
        cg_stops: why conjugate gradients ended, step by step.
    """

    weight: Tensor
    stop: StopReason
    losses: list[float]
    steps: int
    products: int
    cg_stops: list[StopReason]


def newton(
    objective: Objective,
    weight: Tensor,
    options: NewtonOptions,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> NewtonSolution:
    """Minimise an objective from ``weight`` by truncated Newton steps ``H d = -g`` with Armijo backtracking.

    This is the line-search Newton-CG of Nocedal & Wright 2006, section 7.1, without ever forming H (Martens 2010).
    Where the options name a number of curvature images, H comes from a sample while loss and gradient come from all
    images (sub-sampled Newton, Byrd et al. 2011); the sample grows when a step did not gain what the model predicted.

    Args:
        objective: loss, gradient and curvature products.
        weight: start, zero off its mask (the objective masks gradient and products).
        options: settings.
        precondition: see :func:`conjugate_gradients`.

    Returns:
        Solution, stop reason and statistics. A rejected step leaves the weight as it was.
    """
    losses = [objective.value(weight)] if options.steps == 0 else []
    cg_stops: list[StopReason] = []
    products, stop, sample = 0, StopReason.STEPS, options.curvature_images
    for _ in range(options.steps):
        sample = None if sample is None or sample >= objective.images else sample
        at = objective.linearise(weight) if sample is None else objective.linearise(weight, sample)
        if not losses:
            losses.append(at.loss)
        solution = _direction(at, options, precondition)
        products += solution.iterations
        cg_stops.append(solution.stop)
        if solution.iterations == 0:
            stop = StopReason.NOT_FINITE if solution.stop is StopReason.NOT_FINITE else StopReason.ZERO_GRADIENT
            break
        search = _search(objective, weight, at, solution.x, options)
        predicted_reduction, gained = -solution.model[-1], at.loss - search.loss
        least = options.tolerance * abs(at.loss)
        if search.step > 0:
            weight = weight + search.step * solution.x
            assert gained >= 0, "an accepted step never raises the loss"
            losses.append(search.loss)
        missed = search.step < 1 or abs(gained - predicted_reduction) > MISLEADS * predicted_reduction
        if sample is not None and missed and max(gained, predicted_reduction) > least:
            sample *= GROWTH  # what such a step gains tells nothing of the next, which sees more images
            continue
        if search.step == 0:
            stop = StopReason.NO_DESCENT
            break
        if gained <= least:
            stop = StopReason.LOSS
            break
        solved = solution.stop in (StopReason.PROGRESS, StopReason.RESIDUAL, StopReason.EXACT)
        if search.step == 1.0 and solved and abs(gained - predicted_reduction) <= least:
            stop = StopReason.MODEL
            break
    return NewtonSolution(weight, stop, losses, len(losses) - 1, products, cg_stops)


def _direction(
    at: Linearisation, options: NewtonOptions, precondition: Callable[[Tensor], Tensor] | None
) -> CGSolution:
    """Solve the damped Newton equation ``(H + damping I) d = -g`` at one weight."""
    return conjugate_gradients(
        lambda v: at.product(v) + options.damping * v,
        -at.gradient,
        precondition=precondition,
        max_iterations=options.cg_iterations,
        relative=options.cg_relative,
        absolute=options.cg_absolute,
        progress=options.cg_progress,
        window=options.cg_window,
    )


def _search(
    objective: Objective, weight: Tensor, at: Linearisation, direction: Tensor, options: NewtonOptions
) -> LineSearch:
    """Backtrack along a direction, on the same images that loss and gradient are from."""
    return armijo(
        objective.value,
        weight,
        direction,
        at.loss,
        current().agreed([float(dot(at.gradient, direction))])[0],
        c=options.armijo,
        shrink=options.shrink,
        max_backtracks=options.backtracks,
    )
