"""The K-step loss minimised with the empirical Fisher in the place of its curvature, for comparison with SNOWS.

Directions solve ``B d = -g`` by conjugate gradients, with the empirical Fisher of the loss
(:mod:`snows_core.loss.empirical_fisher`) mixed with the preconditioner's matrix, which alone gives it a scale
(:mod:`snows_core.solvers.mixed_curvature`). Start, images, line search and stops are those of
:class:`~snows_core.methods.snows.Snows`.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods.origin import LEAST_SQUARES, NORMAL_EQUATIONS, Origin
from snows_core.methods.snows import Snows, applied
from snows_core.settings import K, NewtonOptions, Recipe
from snows_core.solvers.mixed_curvature import MixedCurvature
from snows_core.solvers.newton_cg import NewtonSolution, newton
from snows_core.solvers.row_factors import RowFactors

SHARE = 0.6  # of the Fisher in the mixture: the best of notebook 06's grid


class SnowsFisher(Snows):
    """Natural-gradient steps on the K-step loss, on all images whatever the recipe says.

    Args:
        recipe: of everything but mini-batches and the preconditioner, without which the Fisher has no scale.
        k: operations behind a layer that its loss sees, or "auto".
    """

    origin = Origin(
        paper="Amari: Natural Gradient Works Efficiently in Learning (with the empirical Fisher of the loss of snows)",
        year=1998,
        needs="the Gram matrix, and the K operations behind the layer",
        cost=f"{NORMAL_EQUATIONS} + {LEAST_SQUARES} + 56 f; as snows, and a product more a step",
        limits="for comparison: an empirical Fisher is no curvature, so steps are shorter than Newton's",
    )

    def __init__(self, recipe: Recipe, k: K) -> None:
        super().__init__(replace(recipe, mini_batches=False, precondition=True), k)

    def minimise(
        self, objective: ReconstructionLoss, start: Tensor, options: NewtonOptions, factors: RowFactors | None
    ) -> NewtonSolution:
        """Minimise the K-step loss of a layer by steps with the mixture.

        Args:
            objective: the loss, which counts its products.
            start: zero off the mask.
            options: Newton, CG and line-search settings.
            factors: of the layer's input on the mask, scaled to the curvature of each row.

        Returns:
            Its loss is never above that of the start.
        """
        solve = applied(factors)
        assert factors is not None and solve is not None, "the recipe preconditions"
        fisher, times = objective.with_fisher(), factors.times
        mixed = MixedCurvature(fisher, lambda v: times(v.flatten(1)).view_as(v), solve, SHARE)
        done = newton(mixed, start, options, solve)
        objective.products += fisher.products
        objective.image_products += fisher.image_products
        return done
