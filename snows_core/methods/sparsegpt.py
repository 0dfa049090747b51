"""SparseGPT: one sweep over a layer's input columns that prunes and makes up for it behind (Frantar & Alistarh 2023).

"SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", Algorithm 1; formulas stand in
:mod:`snows_core.solvers.column_sweep`. Masks are chosen on the way, from weights that have made up for all columns
before (section 3.3): of N:M each group when the sweep reaches it, else the layer's share of all weights of the next 128
columns, so that rows may keep unlike numbers. Of a convolution columns go by input channel and, within it, by kernel
position; for N:M by groups of channels, one kernel position after the other, so that a group's columns are neighbours.

The loss is that of :mod:`.choosing`: the sweep begins at its minimum w*. Behind each column the weights are the best
there are with all columns before it fixed; so they end above the minimum on the mask, which ``update="layerwise"``
gives. On a mask that is there already, the same sweep updates the weights without choosing. All of it takes O(d^3 +
out d^2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.masks.lowest import comparable, lowest
from snows_core.masks.patterns import NM
from snows_core.methods.base import LayerMethod, LayerSolution
from snows_core.methods.choosing import damped_problem, removed_count
from snows_core.methods.origin import GRAM, NORMAL_EQUATIONS, QUADRATIC, SORT, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.methods.swaps import groups_of
from snows_core.solvers.column_sweep import BLOCK, column_sweep

COLUMNS = 128  # of an unstructured mask that are chosen together, as published (section 3.3)


class SparseGpt(LayerMethod):
    """Choose a layer's mask column by column, and make up for what is removed in the columns behind."""

    origin = Origin(
        paper="Frantar & Alistarh: SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        year=2023,
        needs=GRAM,
        cost=f"{NORMAL_EQUATIONS} + {QUADRATIC} + g d^3 (factors) + o d^2 + {SORT} + 100 o d (passes)",
        limits="ends above the minimum of layerwise on its mask",
    )

    chooses_masks = True

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask of the sweep."""
        return self._swept(problem)[1]

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the mask, or the one that there is, and the weights that the sweep leaves on it."""
        weight, mask = self._swept(problem)
        kept = problem.mask if problem.pattern is None else mask
        return self.solution(problem, weight.to(problem.weight.dtype), kept, "all columns were swept once")

    def _swept(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """Return weight and mask, in the weight's shape."""
        damped, best = damped_problem(problem, self.recipe.ridge)
        pattern, allowed = problem.pattern, problem.mask.flatten(1)
        order = torch.arange(best.shape[1], device=best.device)
        part = BLOCK if pattern is None else COLUMNS
        if isinstance(pattern, NM):
            order, part = groups_of(problem.weight, pattern.m).flatten().to(best.device), pattern.m
        choice = _ColumnChoice(problem, allowed[:, order])
        matrix = damped.matrix[:, order[:, None], order]
        weight, mask = column_sweep(matrix, best[:, order], choice, part)
        back = torch.argsort(order)
        return weight[:, back].view_as(problem.weight), mask[:, back].view_as(problem.mask)


class _ColumnChoice:
    """Chooses which weights of some columns stay.

    Args:
        problem: the layer; without a pattern its mask stays as it is.
        allowed: (out, d) bool, columns in the order of the sweep; other weights go first.
    """

    def __init__(self, problem: LayerProblem, allowed: Tensor) -> None:
        self.pattern, self.allowed = problem.pattern, allowed
        self.seed = problem.generator.initial_seed()
        self.total = 0 if isinstance(self.pattern, NM) or self.pattern is None else removed_count(problem)
        self.removed = 0

    def __call__(self, columns: slice, costs: Tensor) -> Tensor:
        """Return which weights of the ``columns`` stay, for what removing each ``costs``, (out, columns) both."""
        may = self.allowed[:, columns]
        if self.pattern is None:
            return may
        ranked = comparable(costs.masked_fill(~may, -1.0))
        if isinstance(self.pattern, NM):
            return self.pattern.mask(ranked, self.seed) & may
        # The layer's share up to here, which the number of columns need not divide; more where more is zero already.
        due = self.total * columns.stop // self.allowed.shape[1] - self.removed
        count = max(due, int((~may).sum()))
        self.removed += count
        return ~lowest(ranked, count, self.seed)
