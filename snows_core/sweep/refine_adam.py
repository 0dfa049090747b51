"""The first-order solver of the joint stage: Adam on mini-batches with a one-cycle schedule."""

from __future__ import annotations

import torch
from torch import nn

from snows_core.loss.joint_curvature import FlatState
from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.sweep.joint_problem import JointProblem, JointSteps, Position, State
from snows_core.sweep.moving_masks import MovingMasks

RATE = 5e-3  # of a parameter's size, see ``sizes``
SMALLEST = 1e-2  # size that a parameter has at least: shifts often begin at nothing


class AdamSteps(JointSteps):
    """Takes Adam steps (Kingma & Ba 2015) with a rate that rises first and then falls to nothing (Smith 2018).

    As Adam's steps are as large as the rate whatever the gradient, each parameter's rate is a share of its own size, as
    in Adafactor (Shazeer & Stern 2018): weights of any scale then change by the same share. The parameters after a step
    are the same tensors as after the one before.

    Args:
        problem: what to minimise, from where, and how.
    """

    def __init__(self, problem: JointProblem) -> None:
        super().__init__(problem)
        options = problem.options
        self.moving = MovingMasks(problem, problem.remask) if options.moving_masks and problem.remask else None
        self.rates = [(options.rate or RATE) * size for size in sizes(problem).values()]  # by the masks at the start
        self._begin(problem.start)

    def _begin(self, start: State) -> None:
        """Hand parameters to an optimiser that knows nothing of the steps before."""
        self.parameters = {name: nn.Parameter(value.clone()) for name, value in start.items()}
        self.state = {name: value.detach() for name, value in self.parameters.items()}
        self.optimiser = torch.optim.Adam([{"params": [value]} for value in self.parameters.values()], lr=RATE)
        total = max(self.problem.options.steps, 4)  # the schedule needs two steps to rise and two to fall
        rise = max(0.1, 2 / total)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, self.rates, total_steps=total, pct_start=rise
        )

    def step(self, number: int) -> None:
        """Take one step."""
        problem, moving = self.problem, self.moving
        batch = problem.batch(problem.options.batch_size)
        self.optimiser.zero_grad()
        problem.loss.backward(batch, self.parameters)
        if moving is not None:
            moving.note({name: value.grad for name, value in self.parameters.items() if value.grad is not None})
        self.optimiser.step()
        self.schedule.step()
        with torch.no_grad():
            for name, mask in problem.kept.items():
                self.parameters[name].mul_(mask)
            if moving is not None and moving.due(number):
                flat = FlatState(self.state, problem.kept)
                curved = JointPreconditioner(problem.loss, batch, self.state, problem.kept, flat, self.probes)
                for name, value in moving.move(self.state, curved).items():
                    self.parameters[name].copy_(value)
        problem.effort.images += len(batch)

    def position(self, number: int) -> Position | None:
        """Return parameters, moments and rates, and the sums of masks that move."""
        base = self._common(number)
        moments = {
            f"{key}/{name}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimiser.state[parameter].items()
        }
        rates = [[group["lr"], *group["betas"]] for group in self.optimiser.param_groups]
        moving = Position({}, {}) if self.moving is None else self.moving.position()
        values = {"rates": rates, "moving": moving.values}
        return Position(base.values | values, base.tensors | moments | moving.tensors)

    def go_on(self, position: Position) -> None:
        """Go on from a ``position``."""
        super().go_on(position)
        self._begin(self.state)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            for name, value in position.part(key).items():
                device = value.device if key == "step" else self.state[name].device  # Adam counts on the host
                self.optimiser.state[self.parameters[name]][key] = value.to(device)
        for group, (rate, *betas) in zip(self.optimiser.param_groups, position.values["rates"], strict=True):
            group["lr"], group["betas"] = rate, tuple(betas)
        self.schedule.last_epoch = position.values["step"]
        if self.moving is not None:
            self.moving.go_on(Position(position.values["moving"], position.tensors))


def sizes(problem: JointProblem) -> dict[str, float]:
    """Return the size of every free parameter at the start: the root mean square of its numbers that are not pruned."""
    found = {}
    for name, value in problem.start.items():
        numbers = value[problem.kept[name]] if name in problem.kept else value
        found[name] = max(SMALLEST, float(numbers.square().mean().sqrt())) if numbers.numel() else SMALLEST
    return found
