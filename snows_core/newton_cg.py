"""Hessian-free Newton: directions by conjugate gradients, a truncated Newton loop around them.

It works on tensors of any one shape and returns its solution, why it stopped and what it spent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from snows_core.conjugate_gradients import CGSolution, Stop, conjugate_gradients, dot
from snows_core.errors import bad
from snows_core.line_search import armijo

# A step that gains more or less than the quadratic model foretold, by this share, tells that the sample is too small.
MISLEADS = 0.1


class Linear(Protocol):
    """Loss, gradient and curvature product at one weight (see ``objective.Linearisation``)."""

    loss: float
    gradient: Tensor
    product: Callable[[Tensor], Tensor]


class Objective(Protocol):
    """A loss that can be evaluated and linearised."""

    def value(self, weight: Tensor) -> float:
        """Return the loss."""

    images: int

    def linearise(self, weight: Tensor, curvature_images: int | None = None) -> Linear:
        """Return loss, gradient and curvature product; the product from a sample of the images where one is named."""


@dataclass(frozen=True)
class NewtonOptions:
    """Settings of the Newton loop.

    Attributes:
        steps: Newton steps at most.
        tolerance: end when a step lowers the loss by less than this fraction, or by what the quadratic model
            foretold to within this fraction: the model was right, and it has been solved.
        cg_iterations: cap on products in one step.
        cg_relative: relative residual tolerance.
        cg_absolute: absolute residual tolerance (the published rule).
        cg_progress: Martens' epsilon, 0 for off.
        cg_window: Martens' smallest lag.
        damping: added to H times identity (published: 1e-4); 0 with a preconditioned, damped Gram matrix.
        armijo: fraction c of the predicted decrease.
        shrink: backtracking factor.
        backtracks: how many times to shrink.
        curvature_images: images whose curvature CG uses at first, doubled whenever a step gains clearly less or
            more than the quadratic model foretold; None for all of them always.
    """

    steps: int = 3
    tolerance: float = 1e-2
    cg_iterations: int = 500
    cg_relative: float = 0.0
    cg_absolute: float = 0.0
    cg_progress: float = 0.0
    cg_window: int = 10
    damping: float = 0.0
    armijo: float = 1e-5
    shrink: float = 0.9
    backtracks: int = 50
    curvature_images: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        sample = self.curvature_images
        if sample is not None and (isinstance(sample, bool) or not isinstance(sample, int) or sample < 1):
            raise bad("curvature_images", repr(sample), "a number of images >= 1, or None for all")
        for name, value in vars(self).items():
            if name == "curvature_images":
                continue
            kind = int if name in ("steps", "cg_iterations", "cg_window", "backtracks") else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise bad(name, repr(value), "an integer" if kind is int else "a number")
        if self.steps < 0 or self.cg_iterations < 1:
            raise bad("steps, cg_iterations", (self.steps, self.cg_iterations), "steps >= 0 and cg_iterations >= 1")
        if not 0 < self.shrink < 1 or not 0 <= self.armijo < 1:
            raise bad("shrink, armijo", (self.shrink, self.armijo), "shrink in (0, 1) and armijo in [0, 1)")
        if min(self.damping, self.tolerance, self.cg_relative, self.cg_absolute, self.cg_progress) < 0:
            raise bad("damping and tolerances", "a negative number", "numbers >= 0")


@dataclass(frozen=True)
class NewtonSolution:
    """What the Newton loop found.

    Attributes:
        weight: the best weight; its loss is never above the start's.
        stop: why the loop ended.
        losses: loss at the start and after each accepted step.
        steps: accepted Newton steps.
        products: curvature products.
        cg_stops: why conjugate gradients ended, step by step.
    """

    weight: Tensor
    stop: Stop
    losses: list[float]
    steps: int
    products: int
    cg_stops: list[Stop]


def newton(
    objective: Objective,
    weight: Tensor,
    options: NewtonOptions,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> NewtonSolution:
    """Minimise an objective from ``weight`` by truncated Newton steps ``H d = -g`` with Armijo backtracking.

    Args:
        objective: loss, gradient and curvature products.
        weight: start, zero off its mask (the objective masks gradient and products).
        options: settings.
        precondition: see :func:`conjugate_gradients`.

    Returns:
        Solution, stop reason and statistics. A rejected step leaves the weight as it was.
    """
    losses = [objective.value(weight)] if options.steps == 0 else []
    cg_stops: list[Stop] = []
    products, stop, sample = 0, Stop.STEPS, options.curvature_images
    for _ in range(options.steps):
        sample = None if sample is None or sample >= objective.images else sample
        at = objective.linearise(weight) if sample is None else objective.linearise(weight, sample)
        if not losses:
            losses.append(at.loss)
        solution = _direction(at, options, precondition)
        products += solution.iterations
        cg_stops.append(solution.stop)
        if solution.iterations == 0:
            stop = Stop.NOT_FINITE if solution.stop is Stop.NOT_FINITE else Stop.ZERO_GRADIENT
            break
        search = armijo(
            objective.value, weight, solution.x, at.loss, float(dot(at.gradient, solution.x)),
            c=options.armijo, shrink=options.shrink, max_backtracks=options.backtracks,
        )  # fmt: skip
        foretold = -solution.model[-1]
        if sample is not None and (search.step < 1 or abs(at.loss - search.loss - foretold) > MISLEADS * foretold):
            sample *= 2
        elif search.step == 0:
            stop = Stop.NO_DESCENT
            break
        if search.step == 0:
            continue
        weight = weight + search.step * solution.x
        assert search.loss <= at.loss, "an accepted step never raises the loss"
        losses.append(search.loss)
        gained, least = losses[-2] - losses[-1], options.tolerance * abs(losses[-2])
        if gained <= least:
            stop = Stop.LOSS
            break
        solved = solution.stop in (Stop.PROGRESS, Stop.RESIDUAL, Stop.EXACT)
        if search.step == 1.0 and solved and abs(gained - foretold) <= least:
            stop = Stop.MODEL
            break
    return NewtonSolution(weight, stop, losses, len(losses) - 1, products, cg_stops)


def _direction(at: Linear, options: NewtonOptions, precondition: Callable[[Tensor], Tensor] | None) -> CGSolution:
    """Solve the damped Newton equation at one weight."""
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
