"""Swaps: a mask improved by exchanging kept for pruned weights while the error of the layer's own re-fit falls.

Each row of a layer begins with the mask that there is: that of the pattern and the saliency, or one given. Then a kept
input goes for a pruned one of the same group wherever that lowers ``|| w X - w0 X0 ||^2`` at the best kept weights, the
best swap of a row first, by gains in closed form (:mod:`snows_core.solvers.swaps`). The pattern holds throughout: each
group of N:M keeps its number, and a row of an unstructured mask keeps as many inputs as before, exchanged within parts
of at most 16. Layers of more than 2,304 inputs take the cheaper gain that holds the other weights of a row fixed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snows_core.masks.patterns import NM
from snows_core.methods.base import LayerMethod, LayerSolution, Needs
from snows_core.methods.enough import enough_for
from snows_core.methods.origin import NORMAL_EQUATIONS, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.solvers.swaps import Swapped, swap_inputs

PART = 16  # inputs of an unstructured row that exchange with one another, at most


class Swaps(LayerMethod):
    """Improve a layer's mask by swaps; the kept weights stay as they are."""

    origin = Origin(
        paper="after Zimmer et al.: SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale; here with gains "
        "after a re-fit",
        year=2025,
        needs="the Gram matrix, and a mask to begin with",
        cost=f"{NORMAL_EQUATIONS} + o d^3 / 3 (factors) + o d^3 / 25 (passes); for d / 10 swaps of a row",
        limits="improves a mask, of magnitude if none is given; re-fits no weight",
    )

    chooses_masks = True
    updates_weights = False
    improves_masks = True

    @property
    def needs(self) -> Needs:
        """What every method needs, and row factors, which stand in an estimate for what swaps factor themselves."""
        return replace(super().needs, row_factors=True)

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask that swaps lead to from the one that the problem starts with."""
        start = problem.before.mask
        if start is None:
            raise ValueError("a method that improves masks is given one to start with")
        images = None
        if problem.segments[-1].k > 0:  # as many as the method "snows" reads for its start, which so finds them there
            images = enough_for(self.recipe, start, problem.positions, problem.images).gram
        return swapped(problem, start, self.recipe.ridge, images).mask.view_as(start)

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the mask, and the dense weight on it."""
        mask = self.choose(problem)
        kept = torch.where(mask, problem.weight, 0.0)
        return self.solution(problem, kept, mask, "the kept weights stay as they were")


def swapped(problem: LayerProblem, start: Tensor, ridge: float, images: int | None = None) -> Swapped:
    """Improve a mask by swaps inside the groups of the problem's pattern.

    Args:
        problem: the layer; weights off its mask are never kept.
        start: bool, weight shape, the mask to begin with.
        ridge: damping relative to the mean of the Gram matrix's diagonal.
        images: use the first ones, rounded up to whole batches; default all.

    Returns:
        The mask in rows (out, d), and what was gained.
    """
    gram, response = problem.normal_equations(images)
    pattern, m = problem.pattern, None
    if isinstance(pattern, NM) and not pattern.misfit(problem.weight):  # masks that were given may be of another kind
        m = pattern.m
    return swap_inputs(
        gram,
        start.flatten(1),
        problem.weight.flatten(1),
        groups_of(problem.weight, m).to(start.device),
        response=response,
        allowed=problem.mask.flatten(1),
        damping=ridge,
        max_bytes=problem.budget.working_bytes,
    )


def groups_of(weight: Tensor, m: int | None) -> Tensor:
    """Return which inputs exchange with one another, by their places in ``weight.flatten(1)``.

    Args:
        weight: (out, in, *kernel).
        m: size of the groups of N:M, along the input channels at each kernel position; None for unstructured patterns.

    Returns:
        (count, size); without ``m`` the inputs side by side, the largest size up to 16 that divides them.

    >>> groups_of(torch.zeros(1, 4, 1, 2), 2).tolist()
    [[0, 2], [1, 3], [4, 6], [5, 7]]
    """
    places = torch.arange(weight[0].numel())
    if m is None:
        return places.view(-1, max(size for size in range(1, PART + 1) if len(places) % size == 0))
    return places.view(weight.shape[1] // m, m, -1).transpose(1, 2).reshape(-1, m)
