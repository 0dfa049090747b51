"""FALCON: weights under a budget of operations and a budget of non-zeros together, by regression on gradients.

Meng et al. 2024, "FALCON: FLOP-Aware Combinatorial Optimization for Neural Network Pruning": the regression of
:mod:`snows_core.methods.chita`, whose first-order steps are projected onto both budgets
(:mod:`snows_core.solvers.two_budgets`). A weight costs as many multiplications as its layer has output positions. From
memory of the paper, whose text was not at hand; its first-order term is left out, as in CHITA. In stages it is
FALCON++: ``mask="falcon", update="falcon", stages=5``. Where the last stage keeps the share c of the weights, one that
keeps ``c^t`` may keep the share ``flops^t`` of the operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.errors import invalid_argument
from snows_core.masks.lowest import exactly
from snows_core.masks.patterns import Unstructured
from snows_core.methods.chita import Chita
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import GRADIENTS, Origin
from snows_core.solvers.l0_regression import Project
from snows_core.solvers.two_budgets import Layers, highest_within


class Falcon(Chita):
    """Choose and re-fit all weights by sparse regression under two budgets."""

    origin = Origin(
        paper="Meng et al.: FALCON, FLOP-Aware Combinatorial Optimization for Neural Network Pruning",
        year=2024,
        needs="gradients of the loss; output positions of each layer",
        cost=f"{GRADIENTS} + 3 n^2 p + 80 n p (passes) + 8,000 p (passes); for 40 steps",
        limits="flops= with a global pattern; without flops= it is chita; stages=5 is FALCON++",
    )

    bounds_flops = True

    def projection(self, problem: NetworkProblem) -> Project:
        """Return what keeps the highest scores within both budgets of a ``problem``."""
        if problem.flops is None:
            return super().projection(problem)
        return TwoBudgets(problem)


class TwoBudgets:
    """Which scores stay under the budgets of a problem: those whose squares add up to the most, up to a weight or two.

    One weight of each layer stays in any case, and as many as a cap of the pattern says.

    Args:
        problem: its pattern says how many stay, its ``flops`` what share of the layers' operations.

    Attributes:
        count: how many stay at most.
        budget: multiplications of an image at most.
    """

    def __init__(self, problem: NetworkProblem) -> None:
        pattern = problem.pattern
        assert isinstance(pattern, Unstructured) and problem.flops is not None, "checked with the settings"
        self.sizes, self.present = problem.sizes, problem.vector(problem.dense) != 0
        self.costs = [problem.positions[layer] for layer in problem.weights]
        self.least = [max(1, size - int(exactly(pattern.cap) * size)) for size in self.sizes]
        self.count = sum(self.sizes) - round(exactly(pattern.sparsity) * sum(self.sizes))
        self.share, self.dense_cost = problem.flops, problem.operations()
        self.budget = self.share * self.dense_cost

    def __call__(self, scores: Tensor) -> Tensor:
        """Return which stay of scores (p,), negative where a weight may not; what came as zero does not, either.

        Raises:
            SnowsError: where the operations are too few for what has to stay of each layer.
        """
        allowed = (scores >= 0) & self.present
        squares = torch.where(allowed, scores.to(widest(scores.device)).square(), -1.0)
        ordered = [part.sort(descending=True, stable=True) for part in torch.split(squares, self.sizes)]
        there = [int(part.sum()) for part in torch.split(allowed, self.sizes)]
        values = [
            found.values[:count].flip(0).cpu().double().numpy() for found, count in zip(ordered, there, strict=True)
        ]
        least = [min(pair) for pair in zip(self.least, there, strict=True)]
        layers = Layers(values, self.costs, least)
        counts = highest_within(layers, self.count, self.budget)
        if counts is None:
            needed = layers.cost(least) / self.dense_cost
            expected = "room for the weights that have to stay in each layer, one or as many as the pattern's cap says"
            raise invalid_argument("flops", self.share, expected, f"They alone take {needed:.4g}.")
        kept = torch.zeros_like(allowed)
        for part, found, count in zip(torch.split(kept, self.sizes), ordered, counts, strict=True):
            part[found.indices[:count]] = True
        return kept
