"""Layer-wise least squares (K = 0) in closed form: the kept weights that repeat the layer's dense output best.

L-OBS, Net-Trim, OBC, SparseGPT and ALPS minimise this loss (:mod:`.choosing`); on a given mask its minimum is one
linear system a row (:mod:`snows_core.solvers.least_squares`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snows_core.methods.base import LayerMethod, LayerSolution, Needs
from snows_core.methods.origin import GRAM, LEAST_SQUARES, NORMAL_EQUATIONS, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors

CLOSED_FORM = "least squares in closed form"


def least_squares(
    problem: LayerProblem, ridge: float, images: int | None = None, mask: Tensor | None = None
) -> tuple[RowFactors, Tensor]:
    """Return the row factors of a layer's input, and the weight that masked least squares gives.

    Args:
        problem: the layer.
        ridge: damping relative to the mean of the Gram matrix's diagonal.
        images: use the first ones, rounded up to whole batches; default all.
        mask: bool, weight shape; default: the problem's own.

    Returns:
        The factors, and the weight in its own shape; not finite where the numbers overflowed.
    """
    _, response = problem.normal_equations(images)
    factors = problem.row_factors(ridge, images, mask)
    solved = masked_least_squares(factors, problem.weight.flatten(1), response=response)
    return factors, solved.view_as(problem.weight)


class Layerwise(LayerMethod):
    """Re-fit a layer by masked least squares, whatever K its report is for."""

    origin = Origin(
        paper="Dong, Chen & Pan: Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon (its "
        "loss, solved exactly)",
        year=2017,
        needs=GRAM,
        cost=f"{NORMAL_EQUATIONS} + {LEAST_SQUARES}; where the factors of all rows are too large, less for factors of "
        "blocks, and more steps of o d^2",
        limits="sees the layer's own output alone",
    )

    @property
    def needs(self) -> Needs:
        """Row factors, beside what every method needs."""
        return replace(super().needs, row_factors=True)

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the least-squares weight, or the masked dense one where it is not finite."""
        _, solved = least_squares(problem, self.recipe.ridge)
        weight = solved if bool(torch.isfinite(solved).all()) else problem.masked
        return self.solution(problem, weight, problem.mask, CLOSED_FORM)
