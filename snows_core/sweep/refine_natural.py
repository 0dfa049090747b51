"""The natural-gradient solver of the joint stage: momentum on gradients that the row factors have preconditioned.

Every pruned layer's gradient is multiplied by the inverse of its block of the Gauss-Newton matrix, with the mask inside
(:class:`snows_core.loss.joint_preconditioner.JointPreconditioner`); K-FAC (Martens & Grosse 2015) with one factor a row
instead of one for all. A step costs little more than one of Adam's, and it is as large as weights are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snows_core.distributed import current
from snows_core.loss.joint_curvature import FlatState, JointObjective
from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.sweep.joint_problem import JointProblem, JointSteps, Position, State, named
from snows_core.sweep.moving_masks import MovingMasks

RATE = 1.3  # over the largest curvature that is left: with this momentum, descent is stable up to 3.8
POWER = 6  # steps of the power method for that curvature
PROBED = 32  # images whose curvature it is
MOMENTUM = 0.9
RIDGE = 1e-2
REFRESH = 20  # steps that share their factors
DIVERGED = 2.0  # times the usual loss: the rate is too high
RISE = 0.1  # of the steps, in which the rate rises


class NaturalSteps(JointSteps):
    """Takes natural-gradient steps, at a rate that rises first and then falls to nothing by half a cosine.

    The rate follows from the largest curvature that the factors leave. Where the loss runs away all the same, the steps
    go on at a quarter of it from where the factors were made.

    Args:
        problem: what to minimise, from where, and how.
    """

    def __init__(self, problem: JointProblem) -> None:
        super().__init__(problem)
        options = problem.options
        self.moving = MovingMasks(problem, problem.remask) if options.moving_masks and problem.remask else None
        self.flat = FlatState(problem.start, problem.kept)
        self.velocity: State = {}
        self.rate, self.slowed = options.rate or 0.0, 1.0
        self.usual, self.safe = math.inf, self.state  # the loss that batches have had, and parameters that had it
        self.precondition: JointPreconditioner | None = None
        self.has_rate = False  # whether the rate belongs to the factors

    def step(self, number: int) -> None:
        """Take one step."""
        problem, options = self.problem, self.problem.options
        batch = problem.batch(options.batch_size)
        loss, gradient = problem.loss.gradient(batch, self.state)
        problem.effort.images += len(batch)
        if not loss <= DIVERGED * self.usual:
            self.state, self.velocity, self.slowed = self.safe, {}, self.slowed / 4
            self.precondition, self.has_rate = None, False
            return
        self.usual = loss if math.isinf(self.usual) else 0.9 * self.usual + 0.1 * loss
        if self.precondition is None or number % REFRESH == 1:
            self.precondition = self._factors(batch)
        natural = self.flat.state(self.precondition(self.flat.vector(gradient)))
        self.velocity = {name: MOMENTUM * self.velocity.get(name, 0) + part for name, part in natural.items()}
        size = self.slowed * self.rate * cycle(number, options.steps)
        self.state = {name: value - size * self.velocity[name] for name, value in self.state.items()}
        if self.moving is not None:
            self.moving.note(gradient)
            if self.moving.due(number):
                self._move(self.moving, self.precondition)

    def _factors(self, batch: Tensor) -> JointPreconditioner:
        """Return factors at the present parameters, and find the rate where none belongs to such factors yet."""
        problem, self.safe = self.problem, self.state
        made = JointPreconditioner(problem.loss, batch, self.state, problem.kept, self.flat, self.probes, RIDGE)
        if not self.has_rate and not problem.options.rate:
            self.rate = _stable_rate(problem, batch[:PROBED], self.state, self.flat, made, self.probes)
        self.has_rate = True
        return made

    def _move(self, moving: MovingMasks, precondition: JointPreconditioner) -> None:
        kept = self.problem.kept
        self.state = moving.move(self.state, precondition)
        self.velocity = {n: v * kept[n] if n in kept else v for n, v in self.velocity.items()}
        self.flat, self.precondition, self.has_rate = FlatState(self.state, kept), None, False
        self.usual = math.inf

    def position(self, number: int) -> Position | None:
        """Return where the steps are; None while the factors, which are too large to keep, serve more steps."""
        if number % REFRESH and self.precondition is not None:
            return None
        base = self._common(number)
        moving = Position({}, {}) if self.moving is None else self.moving.position()
        values = {
            "rate": self.rate,
            "slowed": self.slowed,
            "usual": self.usual,
            "has_rate": self.has_rate,
            "moving": moving.values,
        }
        tensors = named("velocity", self.velocity) | named("safe", self.safe) | moving.tensors
        return Position(base.values | values, base.tensors | tensors)

    def go_on(self, position: Position) -> None:
        """Go on from a ``position``; the next step makes factors."""
        super().go_on(position)
        self.velocity, self.safe = (self._like(self.state, position.part(key)) for key in ("velocity", "safe"))
        for key in ("rate", "slowed", "usual", "has_rate"):
            setattr(self, key, position.values[key])
        self.flat = FlatState(self.state, self.problem.kept)
        if self.moving is not None:
            self.moving.go_on(Position(position.values["moving"], position.tensors))


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
    direction = current().from_main(direction)
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
