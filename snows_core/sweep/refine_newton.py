"""The second-order solver of the joint stage: Newton-CG over all free parameters together, on mini-batches.

Each step draws a batch and solves ``(J' C J) d = -g`` for all kept weights, biases, scales and shifts as one vector, by
the conjugate gradients and the line search that a single layer is solved with (:func:`snows_core.solvers.newton`).
"""

from __future__ import annotations

from snows_core.loss.joint_curvature import FlatState, JointObjective
from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.settings import NewtonOptions
from snows_core.solvers.newton_cg import newton
from snows_core.sweep.joint_problem import JointSteps

# A step to the minimum of one batch's model would fit that batch alone: few products, from few of its images.
NEWTON = NewtonOptions(
    steps=1, cg_iterations=4, cg_progress=0.0, tolerance=0.0, shrink=0.5, backtracks=6, curvature_images=64
)
BATCHES = 2  # of the options' batch size make the batch of a Newton step


class NewtonSteps(JointSteps):
    """Takes Newton steps; one that no length of lowers its batch's loss leaves the parameters as they are."""

    def step(self, number: int) -> None:
        """Take one step."""
        problem, options, effort = self.problem, self.problem.options, self.problem.effort
        flat = FlatState(self.state, problem.kept)
        batch = problem.batch(BATCHES * options.batch_size)
        objective = JointObjective(problem.loss, batch, flat)
        part = batch[: options.batch_size]
        precondition = JointPreconditioner(problem.loss, part, self.state, problem.kept, flat, self.probes)
        done = newton(objective, flat.vector(self.state), NEWTON, precondition)
        self.state = flat.state(done.weight)
        effort.images += len(batch)
        effort.products += objective.products
        effort.image_products += objective.image_products
