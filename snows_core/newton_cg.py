"""Hessian-free Newton: preconditioned conjugate gradients and the truncated Newton loop around them.

Both work on tensors of any one shape and need only a product with the matrix. Each returns its solution, why it
stopped (an enum whose value is the sentence a user reads) and what it spent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from snows_core.errors import bad
from snows_core.line_search import armijo

# A step that gains more or less than the quadratic model foretold, by this share, tells that the sample is too small.
MISLEADS = 0.1


class Stop(Enum):
    """Why a solver ended."""

    RESIDUAL = "the residual fell below its tolerance"
    PROGRESS = "the quadratic model gained too little per iteration"
    EXACT = "the system was solved exactly"
    NEGATIVE_CURVATURE = "a direction of negative (or zero) curvature was met"
    ITERATIONS = "the cap on iterations was reached"
    NOT_FINITE = "a gradient or product was not finite"
    NO_DESCENT = "no step along the direction lowered the loss enough; the old weights stay"
    LOSS = "the loss gained less than its tolerance"
    MODEL = "the loss fell as the quadratic model foretold; another step would gain less than the tolerance"
    STEPS = "the Newton steps asked for were taken"
    ZERO_GRADIENT = "the gradient is zero"


@dataclass(frozen=True)
class CGSolution:
    """What conjugate gradients found.

    Attributes:
        x: approximate solution of ``H x = b``.
        stop: why it ended.
        iterations: products with H.
        residual: norm of ``b - H x``.
        model: value of the quadratic model ``x'Hx / 2 - b'x`` after each iteration (never rising).
    """

    x: Tensor
    stop: Stop
    iterations: int
    residual: float
    model: list[float] = field(repr=False)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64 if a.device.type != "mps" else None)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    max_iterations: int = 500,
    relative: float = 0.0,
    absolute: float = 0.0,
    progress: float = 0.0,
    window: int = 10,
) -> CGSolution:
    """Solve ``H x = b`` for symmetric H by preconditioned conjugate gradients, started at zero.

    Equals ``scipy.sparse.linalg.cg`` on a positive definite H, with two differences that a Newton method needs: it ends
    with the iterate at hand when a direction of non-positive curvature appears (with ``b`` itself in the first
    iteration), and it can end on relative progress of the quadratic model, which does not depend on the scale of b
    (Martens 2010, section 4.4): after i iterations, with lag ``w = max(window, i / 10)``, when
    ``(q_i - q_{i-w}) / q_i < w * progress``.

    Args:
        product: maps v to H v.
        b: right-hand side, any shape.
        precondition: maps r to M^-1 r with M symmetric positive definite; default identity.
        max_iterations: cap on products.
        relative: end when ``|r| <= relative * |b|``.
        absolute: end when ``|r| <= absolute``.
        progress: Martens' epsilon; 0 switches that test off.
        window: smallest lag of that test.

    Returns:
        Solution, stop reason and statistics.

    >>> solution = conjugate_gradients(lambda v: torch.tensor([2.0, 4.0]) * v, torch.tensor([2.0, 4.0]), relative=1e-6)
    >>> [round(value, 4) for value in solution.x.tolist()], solution.iterations
    ([1.0, 1.0], 2)
    """
    x, r = torch.zeros_like(b), b
    z = precondition(r) if precondition else r
    p, rz = z, _dot(r, z)
    gain, residual, size = _read(rz, r.norm(), b.norm())
    target = max(relative * size, absolute)
    model = [0.0]
    if not gain > 0:
        return CGSolution(x, Stop.EXACT if gain == 0 else Stop.NOT_FINITE, 0, residual, model)
    stop = Stop.ITERATIONS
    for i in range(1, max_iterations + 1):
        hp = product(p)
        curved = _dot(p, hp)
        alpha = rz / curved
        next_r = r - alpha * hp
        z = precondition(next_r) if precondition else next_r
        next_rz = _dot(next_r, z)
        curvature, next_gain, next_residual = _read(curved, next_rz, next_r.norm())
        if curvature != curvature or abs(curvature) == float("inf"):
            stop = Stop.NOT_FINITE
            break
        if curvature <= 0:
            stop = Stop.NEGATIVE_CURVATURE
            x = b.clone() if i == 1 else x
            break
        x, r, residual = x + alpha * p, next_r, next_residual
        model.append(model[-1] - 0.5 * gain * gain / curvature)
        if residual <= target:
            stop = Stop.RESIDUAL
            break
        lag = max(window, i // 10)
        if progress and i >= lag and (model[i] - model[i - lag]) / model[i] < lag * progress:
            stop = Stop.PROGRESS
            break
        if not next_gain > 0:
            stop = Stop.EXACT
            break
        p, rz, gain = z + (next_rz / rz) * p, next_rz, next_gain
    return CGSolution(x, stop, i, residual, model)


def _read(*scalars: Tensor) -> list[float]:
    """Bring numbers to the host in one transfer: the only wait for the device in an iteration."""
    return torch.stack([scalar.to(scalars[0].dtype) for scalar in scalars]).tolist()


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
            objective.value, weight, solution.x, at.loss, float(_dot(at.gradient, solution.x)),
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


def _direction(
    at: Linear, options: NewtonOptions, precondition: Callable[[Tensor], Tensor] | None
) -> CGSolution:
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
