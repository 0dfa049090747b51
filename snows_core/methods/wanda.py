"""Wanda: a weight counts as much as its size times the size of the input that it multiplies.

``score_ij = |w_ij| * ||x_j||_2`` with the norm over all calibration images and positions (Sun et al. 2024, "A Simple
and Effective Pruning Approach for Large Language Models", equation 1). Weights are compared within an output row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.masks.patterns import NM
from snows_core.methods.base import LayerMethod, LayerSolution
from snows_core.methods.origin import NORMAL_EQUATIONS, SORT, Origin
from snows_core.methods.problem import LayerProblem


class Wanda(LayerMethod):
    """Choose a layer's mask by weight times input norm; the kept weights stay as they are."""

    origin = Origin(
        paper="Sun, Liu, Bair & Kolter: A Simple and Effective Pruning Approach for Large Language Models",
        year=2024,
        needs="the norms of the inputs",
        cost=f"{NORMAL_EQUATIONS} + {SORT}; from the Gram matrix, n d would do",
        limits="compares weights within a row; re-fits none; a global threshold is for other masks",
    )

    chooses_masks = True
    updates_weights = False

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask: groups of N:M along the inputs, or the pattern's share of each output row."""
        scores = wanda_scores(problem).masked_fill(~problem.mask, -1.0)  # what is zero already goes first
        pattern, seed = problem.pattern, problem.generator.initial_seed()
        if pattern is None:
            raise ValueError("a method that chooses masks is given a pattern")
        if isinstance(pattern, NM):
            return pattern.mask(scores, seed) & problem.mask
        return torch.stack([pattern.mask(row, seed) for row in scores]) & problem.mask

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the mask, and the dense weight on it."""
        mask = self.choose(problem)
        kept = torch.where(mask, problem.weight, 0.0)
        return self.solution(problem, kept, mask, "the kept weights stay as they were")


def wanda_scores(problem: LayerProblem) -> Tensor:
    """Return the score of every weight of a layer, in the weight's shape."""
    gram, _ = problem.normal_equations()
    norms = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()  # (groups, d)
    rows = norms.repeat_interleave(len(problem.weight) // len(norms), 0)  # (out, d)
    return problem.current.abs() * rows.view_as(problem.weight)
