"""The first-order solver of the joint stage: Adam on mini-batches with a one-cycle schedule."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from snows_core.loss.joint_curvature import FlatState
from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.sweep.joint_problem import JointProblem, State
from snows_core.sweep.moving_masks import MovingMasks

RATE = 5e-3  # of a parameter's size, see ``sizes``
SMALLEST = 1e-2  # size that a parameter has at least: shifts often begin at nothing


def adam_steps(problem: JointProblem) -> Iterator[State]:
    """Take Adam steps (Kingma & Ba 2015) with a rate that rises first and then falls to nothing (Smith 2018).

    As Adam's steps are as large as the rate whatever the gradient, each parameter's rate is a share of its own size, as
    in Adafactor (Shazeer & Stern 2018): weights of any scale then change by the same share.

    Args:
        problem: what to minimise, from where, and how.

    Yields:
        The parameters after each step; those of the next step are the same tensors.
    """
    options = problem.options
    moving = MovingMasks(problem, problem.remask) if options.moving_masks and problem.remask else None
    probes = torch.Generator().manual_seed(options.seed)
    state = {name: nn.Parameter(value.clone()) for name, value in problem.start.items()}
    rates = [(options.rate or RATE) * size for size in sizes(problem).values()]
    optimiser = torch.optim.Adam([{"params": [value]} for value in state.values()], lr=RATE)
    total = max(options.steps, 4)  # the schedule needs two steps to rise and two to fall
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=total, pct_start=max(0.1, 2 / total))
    for step in range(1, options.steps + 1):
        batch = problem.batch(options.batch_size)
        optimiser.zero_grad()
        problem.loss.backward(batch, state)
        if moving is not None:
            moving.note({name: value.grad for name, value in state.items() if value.grad is not None})
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for name, mask in problem.kept.items():
                state[name].mul_(mask)
            if moving is not None and moving.due(step):
                shown = {name: value.detach() for name, value in state.items()}
                flat = FlatState(shown, problem.kept)
                curved = JointPreconditioner(problem.loss, batch, shown, problem.kept, flat, probes)
                for name, value in moving.move(shown, curved).items():
                    state[name].copy_(value)
        problem.effort.images += len(batch)
        yield {name: value.detach() for name, value in state.items()}


def sizes(problem: JointProblem) -> dict[str, float]:
    """Return the size of every free parameter at the start: the root mean square of its numbers that are not pruned."""
    found = {}
    for name, value in problem.start.items():
        numbers = value[problem.kept[name]] if name in problem.kept else value
        found[name] = max(SMALLEST, float(numbers.square().mean().sqrt())) if numbers.numel() else SMALLEST
    return found
