"""The K-step loss minimised by Adam on the kept weights, for comparison with SNOWS.

Every step takes the gradient of as many images as SNOWS takes its own from; no curvature product is taken
(:mod:`snows_core.solvers.adam`). The start is that of :class:`~snows_core.methods.snows.Snows`.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods.origin import LEAST_SQUARES, NORMAL_EQUATIONS, Origin
from snows_core.methods.snows import Snows
from snows_core.settings import K, NewtonOptions, Recipe
from snows_core.solvers.adam import adam
from snows_core.solvers.conjugate_gradients import StopReason
from snows_core.solvers.newton_cg import NewtonSolution
from snows_core.solvers.row_factors import RowFactors

STEPS = 60
RATE = 0.05  # of the first step, relative to the root mean square of the kept weights


class SnowsAdam(Snows):
    """Adam on the K-step loss, on all images in every step whatever the recipe says.

    Args:
        recipe: of everything but mini-batches and the preconditioner, which it has no use for.
        k: operations behind a layer that its loss sees, or "auto".
    """

    origin = Origin(
        paper="Kingma & Ba: Adam, A Method for Stochastic Optimization (on the loss of snows)",
        year=2015,
        needs="the K operations behind the layer",
        cost=f"{NORMAL_EQUATIONS} + {LEAST_SQUARES} + {3 * STEPS} f + {10 * STEPS} n o (passes); for {STEPS} gradients",
        limits="for comparison: its rate and steps are chosen, where Newton's method has nothing to choose",
    )

    gradient_steps = STEPS

    def __init__(self, recipe: Recipe, k: K) -> None:
        super().__init__(replace(recipe, mini_batches=False, precondition=False), k)

    def minimise(
        self, objective: ReconstructionLoss, start: Tensor, options: NewtonOptions, factors: RowFactors | None
    ) -> NewtonSolution:
        """Minimise the K-step loss of a layer by Adam.

        Args:
            objective: the loss.
            start: zero off the mask.
            options: not used.
            factors: not used.

        Returns:
            The best weight on the way, without Newton steps.
        """
        rate = RATE * float(start[objective.mask].square().mean().sqrt())
        done = adam(objective, start, STEPS, rate)
        return NewtonSolution(done.weight, StopReason.STEPS, list(done.losses), 0, 0, [])

    def stop(self, done: NewtonSolution) -> str:
        """Return why it ended: there is one way."""
        return f"the {STEPS} steps of Adam were taken"
