"""Net-Trim: the weights of least l1 norm that repeat a layer's output within a tolerance (Aghasi et al. 2017).

"Net-Trim: Convex Pruning of Deep Neural Networks with Performance Guarantee", section 2: minimise ``|| W ||_1`` so
that ``|| W X - Y ||_F`` is at most a tolerance. Where the paper's layer ends in a ReLU, it bounds the error where Y
is positive and asks for a negative output elsewhere; here the layer's own linear output counts everywhere, as in all
layer-wise methods here, so that Gram matrices are enough. The loss is that of :mod:`.choosing`, Y the dense output.

The problem is solved in its Lagrangian form (:mod:`snows_core.solvers.l1_admm`). Its multiplier, which stands for the
tolerance, is bisected until as many weights are left as the pattern keeps; where rounding leaves a few more, the
smallest of them go. The weights are those of the l1 problem, which are drawn towards zero: ``update="layerwise"``
re-fits them on the same mask. On a mask that is there already no norm has to fall, and the update is least squares.

A sum of absolute values knows no groups, so N:M is for other methods.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from snows_core.methods.base import LayerSolution
from snows_core.methods.choosing import RefittedChoice, damped_problem, highest, removed_count
from snows_core.methods.origin import GRAM, LEAST_SQUARES, NORMAL_EQUATIONS, QUADRATIC, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.solvers.l1_admm import L1LeastSquares, sparsest
from snows_core.solvers.least_squares import grouped_product


class NetTrim(RefittedChoice):
    """Choose a layer's mask and weights by an l1 problem."""

    origin = Origin(
        paper="Aghasi, Abdi, Nguyen & Romberg: Net-Trim: Convex Pruning of Deep Neural Networks with Performance "
        "Guarantee",
        year=2017,
        needs=GRAM,
        cost=f"{NORMAL_EQUATIONS} + {QUADRATIC} + {LEAST_SQUARES} + 3 g d^3 (factors) + 2,000 o d^2 + "
        "20,000 o d (passes); for 1,000 steps of ADMM in all",
        limits="no N:M; its l1 norm draws kept weights towards zero",
    )

    chooses_groups: ClassVar[bool] = False

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask of the weights that the l1 problem leaves."""
        return self._trimmed(problem)[1]

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return mask and weights of the l1 problem; on a mask that is there already, the least-squares weight."""
        if problem.pattern is None:
            return super().solve(problem)
        weight, mask, error = self._trimmed(problem)
        told = f"the l1 problem was solved at a tolerance of {100 * error:.3g} % of the output"
        return self.solution(problem, weight, mask, told)

    def _trimmed(self, problem: LayerProblem) -> tuple[Tensor, Tensor, float]:
        """Return weight and mask, in the weight's shape, and the error as a share of the best output's norm."""
        damped, best = damped_problem(problem, self.recipe.ridge)
        _, response = problem.normal_equations()
        right = damped.right_side(problem.weight.flatten(1), response)
        allowed = problem.mask.flatten(1)
        keep = min(allowed.numel() - removed_count(problem), int(allowed.sum()))
        l1 = L1LeastSquares(damped.matrix, right, allowed)
        sparsest(l1, keep)
        mask = highest(problem, l1.weight.abs())
        weight = torch.where(mask, l1.weight, 0.0)
        apart, whole = (float((grouped_product(damped.matrix, w) * w).sum()) for w in (weight - best, best))
        error = (apart / whole) ** 0.5 if whole > 0 else 0.0
        return weight.to(problem.weight.dtype).view_as(problem.weight), mask.view_as(problem.mask), error
