"""The first-order solver of the joint stage: Adam on mini-batches with a one-cycle schedule."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from snows_core.sweep.joint_problem import JointProblem, State


def adam_steps(problem: JointProblem) -> Iterator[State]:
    """Take Adam steps (Kingma & Ba 2015) with a rate that rises first and then falls to nothing (Smith 2018).

    Args:
        problem: what to minimise, from where, and how.

    Yields:
        The parameters after each step; those of the next step are the same tensors.
    """
    options = problem.options
    state = {name: nn.Parameter(value.clone()) for name, value in problem.start.items()}
    optimiser = torch.optim.Adam(state.values(), lr=options.rate)
    total = max(options.steps, 4)  # the schedule needs two steps to rise and two to fall
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.rate, total_steps=total, pct_start=max(0.1, 2 / total)
    )
    for _ in range(options.steps):
        batch = problem.batch(options.batch_size)
        optimiser.zero_grad()
        problem.loss.backward(batch, state)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for name, mask in problem.kept.items():
                state[name].mul_(mask)
        problem.effort.images += len(batch)
        yield {name: value.detach() for name, value in state.items()}
