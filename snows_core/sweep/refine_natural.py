"""The natural-gradient solver of the joint stage: momentum on gradients that the row factors have preconditioned.

Every pruned layer's gradient is multiplied by the inverse of its block of the Gauss-Newton matrix, with the mask inside
(:class:`snows_core.loss.joint_preconditioner.JointPreconditioner`); K-FAC (Martens & Grosse 2015) with one factor a row
instead of one for all. A step costs little more than one of Adam's, and it is as large as weights are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from snows_core.loss.joint_curvature import FlatState, JointObjective
from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.sweep.joint_problem import JointProblem, State
from snows_core.sweep.moving_masks import MovingMasks

RATE = 1.3  # over the largest curvature that is left: with this momentum, descent is stable up to 3.8
POWER = 6  # steps of the power method for that curvature
PROBED = 32  # images whose curvature it is
MOMENTUM = 0.9
RIDGE = 1e-2
REFRESH = 20  # steps that share their factors
DIVERGED = 2.0  # times the usual loss: the rate is too high
RISE = 0.1  # of the steps, in which the rate rises


def natural_steps(problem: JointProblem) -> Iterator[State]:
    """Take natural-gradient steps, at a rate that rises first and then falls to nothing by half a cosine.

    The rate follows from the largest curvature that the factors leave. Where the loss runs away all the same, the steps
    go on at a quarter of it from where the factors were made.

    Args:
        problem: what to minimise, from where, and how.

    Yields:
        The parameters after each step.
    """
    options = problem.options
    moving = MovingMasks(problem, problem.remask) if options.moving_masks and problem.remask else None
    probes = torch.Generator().manual_seed(options.seed)
    state, flat = problem.start, FlatState(problem.start, problem.kept)
    velocity: State = {}
    rate, slowed = options.rate or 0.0, 1.0
    usual, safe = math.inf, state  # the loss that batches have had, and parameters that had it
    precondition: JointPreconditioner | None = None
    for step in range(1, options.steps + 1):
        batch = problem.batch(options.batch_size)
        loss, gradient = problem.loss.gradient(batch, state)
        problem.effort.images += len(batch)
        if not loss <= DIVERGED * usual:
            state, velocity, slowed, precondition = safe, {}, slowed / 4, None
            yield state
            continue
        usual = loss if math.isinf(usual) else 0.9 * usual + 0.1 * loss
        if precondition is None or step % REFRESH == 1:
            fresh, safe = precondition is None, state
            precondition = JointPreconditioner(problem.loss, batch, state, problem.kept, flat, probes, RIDGE)
            if fresh and not options.rate:
                rate = _stable_rate(problem, batch[:PROBED], state, flat, precondition, probes)
        natural = flat.state(precondition(flat.vector(gradient)))
        velocity = {name: MOMENTUM * velocity.get(name, 0) + part for name, part in natural.items()}
        size = slowed * rate * cycle(step, options.steps)
        state = {name: value - size * velocity[name] for name, value in state.items()}
        if moving is not None:
            moving.note(gradient)
            if moving.due(step):
                state = moving.move(state, precondition)
                velocity = {n: v * problem.kept[n] if n in problem.kept else v for n, v in velocity.items()}
                flat, precondition, usual = FlatState(state, problem.kept), None, math.inf
        yield state


def _stable_rate(
    problem: JointProblem,
    images: Tensor,
    state: State,
    flat: FlatState,
    precondition: JointPreconditioner,
    generator: torch.Generator,
) -> float:
    """Return the rate that the largest curvature on some images allows, and count what it took."""
    objective = JointObjective(problem.loss, images, flat)  # it holds the images: no longer than this
    rate = RATE / largest_curvature(objective, flat.vector(state), precondition, generator)
    problem.effort.products += objective.products
    problem.effort.image_products += objective.image_products
    return rate


def largest_curvature(
    objective: JointObjective, vector: Tensor, precondition: JointPreconditioner, generator: torch.Generator
) -> float:
    """Return about the largest eigenvalue of the preconditioned Gauss-Newton matrix, by the power method.

    It is far above 1: rows and layers that the factors treat apart act together.

    Args:
        objective: gives products.
        vector: where, (n,).
        precondition: maps a gradient to a direction.
        generator: of the first direction, drawn on its own device.

    Returns:
        The Rayleigh quotient at the last of ``POWER`` products, never below 1.
    """
    product = objective.linearise(vector).product
    direction = torch.randn(len(vector), generator=generator, device=generator.device).to(vector)
    direction = objective.loss.processes.from_main(direction)
    largest = 1.0
    for _ in range(POWER):
        curved = product(direction)
        # (d' G M^-1 G d) / (d' G d): the quotient in the norm of G, in which M^-1 G is symmetric
        step = precondition(curved)
        largest = max(1.0, float((curved @ step) / (direction @ curved).clamp(min=torch.finfo(vector.dtype).tiny)))
        direction = step / step.norm()
    return largest


def cycle(step: int, steps: int, rise: float = RISE) -> float:
    """Return the share of the largest rate at a step, counted from 1: a line up, then half a cosine down to nothing.

    >>> [round(cycle(step, 10), 2) for step in (1, 2, 6, 10)]
    [1.0, 0.97, 0.41, 0.0]
    """
    up = max(1, round(rise * steps))
    if step <= up:
        return step / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / (steps - up)))
