"""The first-order solver of the joint stage: Adam on mini-batches with a one-cycle schedule."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from snows_core.sweep.joint_problem import JointProblem, State
from snows_core.sweep.moving_masks import masks_of


def adam_steps(problem: JointProblem) -> Iterator[State]:
    """Take Adam steps (Kingma & Ba 2015) with a rate that rises first and then falls to nothing (Smith 2018).

    Args:
        problem: what to minimise, from where, and how.

    Yields:
        The parameters after each step; those of the next step are the same tensors.
    """
    options = problem.options
    state = {name: nn.Parameter(value.clone()) for name, value in problem.start.items()}
    module = problem.loss.forward.network.module
    masks = masks_of(problem, state, {name: module.get_parameter(name).detach() for name in problem.kept})
    optimiser = torch.optim.Adam(state.values(), lr=options.rate)
    total = max(options.steps, 4)  # the schedule needs two steps to rise and two to fall
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.rate, total_steps=total, pct_start=max(0.1, 2 / total)
    )
    for step in range(1, options.steps + 1):
        batch = problem.batch(options.batch_size)
        optimiser.zero_grad()
        shown = masks.shown(state)
        problem.loss.backward(batch, shown)
        masks.collect(shown, state)
        optimiser.step()
        schedule.step()
        masks.settle(step, state)
        problem.effort.images += len(batch)
        yield {name: value.detach() for name, value in state.items()}
