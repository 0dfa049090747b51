"""ALPS: the pattern as a constraint of the layer's least squares, by ADMM, then conjugate gradients (Meng et al. 2024).

"ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models": a mask is looked for by
alternating between the least-squares problem and the pattern, with a penalty for their difference that grows while
the support still changes (section 3.2, :mod:`snows_core.solvers.l0_admm`). On the support that is left, conjugate
gradients with the diagonal as preconditioner fit the weights of all rows at once (section 3.3). Unstructured masks
keep their share of the whole layer, N:M its number in each group.

The loss is that of :mod:`.choosing`, whose right-hand side has ``X y0'`` in place of the paper's ``X X' w0`` where
layers before have changed the input. On a mask that is there already, only the conjugate gradients run. An ADMM step
takes two products with a d x d matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.methods.base import LayerMethod, LayerSolution
from snows_core.methods.choosing import damped_problem, highest
from snows_core.methods.origin import GRAM, NORMAL_EQUATIONS, QUADRATIC, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.solvers.damped_gram import DampedGram
from snows_core.solvers.l0_admm import pattern_admm
from snows_core.solvers.least_squares import Diagonal, masked_least_squares

ITERATIONS, TOLERANCE = 200, 1e-9  # conjugate gradients: at most so many, down to this relative residual


class Alps(LayerMethod):
    """Choose a layer's mask by ADMM, and re-fit the weights that it keeps by conjugate gradients."""

    origin = Origin(
        paper="Meng, Behdin, Wang & Mazumder: ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for "
        "Large Language Models",
        year=2024,
        needs=GRAM,
        cost=f"{NORMAL_EQUATIONS} + {QUADRATIC} + 3 g d^3 (factors) + 100 o d^2 + 20,000 o d (passes); "
        "for 50 steps of ADMM and as many of conjugate gradients, at most 300 and 200",
        limits="sees the layer's own output alone; a global threshold is for other masks",
    )

    chooses_masks = True

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask that ADMM ends with."""
        return self._admm(problem, *self._quadratic(problem))[1].view_as(problem.mask)

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the mask, or the one that there is, and the weights on it."""
        damped, best, right = self._quadratic(problem)
        mask, told = problem.mask, "conjugate gradients on the mask"
        start = torch.where(mask.flatten(1), best, 0.0)
        if problem.pattern is not None:
            start, chosen, steps = self._admm(problem, damped, best, right)
            mask, told = chosen.view_as(mask), f"{steps} steps of ADMM, then conjugate gradients"
        factors = Diagonal(damped.matrix, mask.flatten(1), 0.0)  # the matrix is damped already
        weight = masked_least_squares(
            factors, best, response=right, start=start, iterations=ITERATIONS, tolerance=TOLERANCE
        )
        return self.solution(problem, weight.to(problem.weight.dtype).view_as(problem.weight), mask, told)

    def _quadratic(self, problem: LayerProblem) -> tuple[DampedGram, Tensor, Tensor]:
        """Return H, w*, and w* H."""
        damped, best = damped_problem(problem, self.recipe.ridge)
        _, response = problem.normal_equations()
        return damped, best, damped.right_side(problem.weight.flatten(1), response)

    @staticmethod
    def _admm(problem: LayerProblem, damped: DampedGram, best: Tensor, right: Tensor) -> tuple[Tensor, Tensor, int]:
        return pattern_admm(damped.matrix, right, best, lambda sizes: highest(problem, sizes))
