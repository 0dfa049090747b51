"""What methods share that choose a mask by the layer's own error and re-fit the weights that it keeps.

All of them minimise ``|| w X - w0 X0 ||^2 + damping || w - w0 ||^2`` with the layer's input X, the dense network's
input X0 at its place, and the dense weight w0: the problem of :mod:`snows_core.solvers.least_squares`, under a
pattern. Their papers write it for ``X0 = X``, or for a w0 that is a minimum; here the minimum over all weights is w*
(:mod:`snows_core.solvers.damped_gram`), which takes the place of w0 wherever a paper expands around it.

Where a mask is there already, by ``masks=`` or another method, it is kept, and only the weights are fitted.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from snows_core.errors import OverflowedError, invalid_argument
from snows_core.masks.patterns import Pattern
from snows_core.methods.base import LayerMethod, LayerSolution, Needs
from snows_core.methods.layerwise import CLOSED_FORM, least_squares
from snows_core.methods.problem import LayerProblem
from snows_core.solvers.damped_gram import DampedGram, damped_gram


class RefittedChoice(LayerMethod):
    """A method that chooses a mask, and whose update is the minimum on it: masked least squares."""

    chooses_masks = True

    @property
    def needs(self) -> Needs:
        """Row factors, beside what every method needs."""
        return replace(super().needs, row_factors=True)

    @abstractmethod
    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask."""

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the mask, or the one that there is, and the least-squares weight on it."""
        mask = problem.mask if problem.pattern is None else self.choose(problem)
        _, solved = least_squares(problem, self.recipe.ridge, mask=mask)
        weight = solved if bool(torch.isfinite(solved).all()) else torch.where(mask, problem.weight, 0.0)
        return self.solution(problem, weight, mask, CLOSED_FORM)


def damped_problem(problem: LayerProblem, ridge: float) -> tuple[DampedGram, Tensor]:
    """Return the quadratic of a layer's loss, and its minimiser w* over all weights.

    Args:
        problem: the layer.
        ridge: damping relative to the mean of the Gram matrix's diagonal.

    Returns:
        The damped Gram matrices, and w* as rows (out, d) in their number format.

    Raises:
        OverflowedError: where numbers overflowed.
    """
    gram, response = problem.normal_equations()
    damped = damped_gram(gram, ridge)
    best = damped.minimiser(problem.weight.flatten(1), response)
    if not bool(torch.isfinite(damped.lower).all() and torch.isfinite(best).all()):
        expected = "inputs whose products are finite"
        got = f"inputs of '{problem.name}' whose Gram matrix overflows"
        raise OverflowedError(str(invalid_argument("images", got, expected)))
    return damped, best


def pattern_of(problem: LayerProblem) -> Pattern:
    """Return the pattern that a mask is chosen by.

    Raises:
        ValueError: where there is none.
    """
    if problem.pattern is None:
        raise ValueError("a method that chooses masks is given a pattern")
    return problem.pattern


def highest(problem: LayerProblem, scores: Tensor) -> Tensor:
    """Return the mask of the highest scores under the problem's pattern, the whole layer being one set without N:M.

    Args:
        problem: the layer.
        scores: (out, d), not negative.

    Returns:
        (out, d) bool; weights that are zero already are not kept.
    """
    allowed = problem.mask.flatten(1)
    ranked = scores.masked_fill(~allowed, -1.0).view(problem.weight.shape)  # what is zero already goes first
    return pattern_of(problem).mask(ranked, problem.generator.initial_seed()).flatten(1) & allowed


def removed_count(problem: LayerProblem) -> int:
    """Return how many weights the problem's pattern takes from the layer."""
    mask = pattern_of(problem).mask(problem.weight.abs())
    return mask.numel() - int(mask.sum())
