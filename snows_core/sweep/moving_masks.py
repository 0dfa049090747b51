"""Masks during the joint stage: those that stay, and those that move within the budget of their pattern.

Masks move by the straight-through estimator: the network runs with masked weights, the gradient also reaches those that
are pruned, so that they have values in the background, and every few steps the largest values take the places (dynamic
network surgery, Guo et al. 2016; SR-STE, Zhou et al. 2021; UniPTS, Xie et al. 2024). Pruned values decay a little, or
they would wander off. In the last part of the steps masks are frozen, and the kept weights settle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snows_core.sweep.joint_problem import JointProblem, Remask, State

EVERY = 10  # steps between two choices of masks
FROZEN = 0.5  # of the steps, the last ones, have masks that stay
DECAY = 0.02  # share that a pruned value loses in a step


class FixedMasks:
    """Masks that stay: pruned weights are zero after every step.

    Args:
        problem: one joint stage.
    """

    def __init__(self, problem: JointProblem) -> None:
        self.problem = problem

    def shown(self, state: dict[str, nn.Parameter]) -> State:
        """Return the parameters that the network runs with; they get the gradient."""
        return dict(state)

    def collect(self, shown: State, state: dict[str, nn.Parameter]) -> None:
        """Bring the gradient of what was shown to the parameters themselves."""

    @torch.no_grad()
    def settle(self, step: int, state: dict[str, nn.Parameter]) -> None:
        """Set pruned weights to zero after a ``step`` of the optimiser."""
        for name, mask in self.problem.kept.items():
            state[name].mul_(mask)


class MovingMasks(FixedMasks):
    """Masks that move.

    Args:
        problem: one joint stage; its masks change.
        remask: chooses masks from scores.
        steps: how many there will be.

    Attributes:
        moved: places that changed hands at each choice of masks.
    """

    def __init__(self, problem: JointProblem, remask: Remask, steps: int) -> None:
        super().__init__(problem)
        self.remask = remask
        self.last = steps - int(FROZEN * steps)  # the step before which masks move for the last time
        self.frozen = steps < 2 * EVERY
        self.moved: list[int] = []

    @torch.no_grad()
    def start(self, state: dict[str, nn.Parameter], dense: State) -> None:
        """Give pruned weights their dense values in the background: where they would be had they not been pruned."""
        if not self.frozen:
            for name, mask in self.problem.kept.items():
                state[name].copy_(torch.where(mask, state[name], dense[name]))

    def shown(self, state: dict[str, nn.Parameter]) -> State:
        """Return masked copies of the pruned weights, and the other parameters themselves."""
        shown: State = dict(state)
        for name, mask in self.problem.kept.items():
            shown[name] = torch.where(mask, state[name].detach(), 0.0).requires_grad_(True)
        return shown

    def collect(self, shown: State, state: dict[str, nn.Parameter]) -> None:
        """Pass the gradient straight through the masks while they move."""
        for name, mask in self.problem.kept.items():
            gradient = shown[name].grad
            if gradient is not None:
                state[name].grad = gradient * mask if self.frozen else gradient

    @torch.no_grad()
    def settle(self, step: int, state: dict[str, nn.Parameter]) -> None:
        """Let pruned values decay and masks move, or set pruned weights to zero where masks are frozen."""
        if self.frozen:
            super().settle(step, state)
            return
        for name, mask in self.problem.kept.items():
            state[name].mul_(torch.where(mask, 1.0, 1.0 - DECAY))
        if step % EVERY == 0 or step >= self.last:
            self.move(state)
        if step >= self.last:
            self.frozen = True
            super().settle(step, state)

    def move(self, state: dict[str, nn.Parameter]) -> None:
        """Give the places to the largest values, within the pattern's budget."""
        names = {layer: name for name, layer in self.problem.layers.items()}
        masks = self.remask({layer: state[name].detach().abs() for layer, name in names.items()})
        moved = 0
        for layer, mask in masks.items():
            before = self.problem.kept[names[layer]]
            moved += int((mask.to(before.device) & ~before).sum())
            self.problem.kept[names[layer]] = mask.to(before.device)
        self.moved.append(moved)


def masks_of(problem: JointProblem, state: dict[str, nn.Parameter], dense: dict[str, Tensor]) -> FixedMasks:
    """Return what handles the masks of a joint stage, as its options say.

    Args:
        problem: the joint stage.
        state: where it starts; pruned weights get values in the background where masks move.
        dense: parameter name to dense value of every pruned weight.
    """
    if not problem.options.moving_masks or problem.remask is None:
        return FixedMasks(problem)
    moving = MovingMasks(problem, problem.remask, problem.options.steps)
    moving.start(state, dense)
    return moving
