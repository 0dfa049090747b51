"""The second-order solver of the joint stage: Newton-CG over all free parameters together, on mini-batches.

Each step draws a batch and solves ``(J' C J) d = -g`` for all kept weights, biases, scales and shifts as one vector, by
the conjugate gradients and the line search that a single layer is solved with (:func:`snows_core.solvers.newton`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from snows_core.loss.joint_curvature import FlatState, JointObjective
from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.settings import NewtonOptions
from snows_core.solvers.newton_cg import newton
from snows_core.sweep.joint_problem import JointProblem, State

# A step to the minimum of one batch's model would fit that batch alone: few products, from few of its images.
NEWTON = NewtonOptions(
    steps=1, cg_iterations=4, cg_progress=0.0, tolerance=0.0, shrink=0.5, backtracks=6, curvature_images=64
)
BATCHES = 2  # of the options' batch size make the batch of a Newton step


def newton_steps(problem: JointProblem) -> Iterator[State]:
    """Take Newton steps.

    Args:
        problem: what to minimise, from where, and how.

    Yields:
        The parameters after each step; a step that no length of lowers its batch's loss leaves them as they are.
    """
    options, effort = problem.options, problem.effort
    state = problem.start
    probes = torch.Generator().manual_seed(options.seed)
    while True:
        flat = FlatState(state, problem.kept)
        batch = problem.batch(BATCHES * options.batch_size)
        objective = JointObjective(problem.loss, batch, flat)
        precondition = JointPreconditioner(problem.loss, batch[: options.batch_size], state, problem.kept, flat, probes)
        done = newton(objective, flat.vector(state), NEWTON, precondition)
        state = flat.state(done.weight)
        effort.images += len(batch)
        effort.products += objective.products
        effort.image_products += objective.image_products
        yield state
