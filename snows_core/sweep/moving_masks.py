"""Masks that move during the joint stage, within the budget of their pattern.

The gradient also reaches pruned weights (the straight-through estimator of SR-STE, Zhou et al. 2021, and of UniPTS, Xie
et al. 2024). Averaged over some steps it tells what each of them would be worth: ``-g / H`` with the diagonal H of the
curvature is where a pruned weight alone would go. Every few steps these values and those of the kept weights compete
for the places. What enters starts at zero, and the steps that follow give it its value. In the last part of the steps
masks stay, and the kept weights settle.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.sweep.joint_problem import JointProblem, Position, Remask, State, named

EVERY = 20  # steps between two choices of masks
FROZEN = 0.5  # of the steps, the last ones, have masks that stay
WORTH = 0.2  # of the value that a pruned weight would go to alone: many that enter do one another's work


class MovingMasks:
    """Masks that move.

    Args:
        problem: one joint stage; its masks change.
        remask: chooses masks from scores.

    Attributes:
        moved: places that changed hands at each choice of masks.
    """

    def __init__(self, problem: JointProblem, remask: Remask) -> None:
        self.problem, self.remask = problem, remask
        self.last = int((1 - FROZEN) * problem.options.steps)
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.moved: list[int] = []

    def position(self) -> Position:
        """Return what the choices to come depend on, beside the masks of the problem."""
        return Position({"count": self.count, "moved": self.moved}, named("sums", self.sums))

    def go_on(self, position: Position) -> None:
        """Go on from a ``position``."""
        self.count, self.moved = position.values["count"], list(position.values["moved"])
        device = self.problem.loss.device
        self.sums = {name: value.to(device) for name, value in position.part("sums").items()}

    @torch.no_grad()
    def note(self, gradient: Mapping[str, Tensor]) -> None:
        """Add the gradient of a step, pruned weights included."""
        for name in self.problem.kept:
            self.sums[name] = self.sums.get(name, 0) + gradient[name]
        self.count += 1

    def due(self, step: int) -> bool:
        """Tell whether masks are chosen anew after a ``step``, counted from 1."""
        return step % EVERY == 0 and step <= self.last

    @torch.no_grad()
    def move(self, state: State, precondition: JointPreconditioner) -> State:
        """Give the places to the largest values.

        Args:
            state: the parameters, zero where they are pruned.
            precondition: knows the curvature of every entry.

        Returns:
            The parameters on the new masks, which are those of the problem from here on.
        """
        values = dict(state)
        for name, mask in self.problem.kept.items():
            alone = -self.sums[name] / self.count / precondition.diagonal(name)
            values[name] = torch.where(mask, state[name], WORTH * alone)
        masks = self.remask({layer: values[name].abs() for name, layer in self.problem.layers.items()})
        moved = 0
        for name, layer in self.problem.layers.items():
            before, mask = self.problem.kept[name], masks[layer].to(values[name].device)
            enters = mask & ~before
            moved += int(enters.sum())
            values[name] = torch.where(mask & before, state[name], 0.0)
            self.problem.kept[name] = mask
        self.moved.append(moved)
        self.sums, self.count = {}, 0
        return values
