"""CBS, the Combinatorial Brain Surgeon: weights chosen for what their joint removal costs, and the others re-fitted.

Yu et al. 2022, "The Combinatorial Brain Surgeon: Pruning Weights That Cancel One Another in Neural Networks". CBS-S
chooses the removed set by the quadratic of all pairs with the empirical Fisher: here by their greedy swaps (algorithm
1, :mod:`snows_core.solvers.pairwise_swaps`) from the mask of magnitude; their randomised starts, of which the best is
taken, are left out. CBS-U moves the kept weights to the minimum of the quadratic, all removals together, which is the
ridge regression of :mod:`snows_core.methods.chita` on that mask.

Under a global pattern any two weights may be swapped, but for the largest kept one of each layer, so that no layer is
emptied. Otherwise, and where the pattern has a cap, swaps stay within a layer. Groups of N:M are not searched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from snows_core.masks.patterns import Masks, Unstructured
from snows_core.methods.chita import regression_of
from snows_core.methods.network_method import NetworkMethod
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import GRADIENTS, Origin
from snows_core.solvers.pairwise_swaps import swap_removed


class CombinatorialSurgeon(NetworkMethod):
    """Choose by swaps on the quadratic of a joint removal, and update by its minimum."""

    origin = Origin(
        paper="Yu et al.: The Combinatorial Brain Surgeon",
        year=2022,
        needs="gradients of the loss",
        cost=f"{GRADIENTS} + n^2 p + 80 n p (passes) + 1,500 p (passes); for 30 rounds of swaps",
        limits="no N:M; one start, that of magnitude",
    )

    chooses_groups = False

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of a ``problem`` that swaps lead to from those of magnitude."""
        weight = problem.vector(problem.weights)
        removed = ~problem.vector(problem.masks(weight.abs()))
        for movable in _pools(problem, weight, removed):
            removed = swap_removed(problem.gradients, weight, removed, movable, problem.damping)
        parts = zip(problem.weights.items(), torch.split(~removed, problem.sizes), strict=True)
        return {layer: part.view(own.shape) for (layer, own), part in parts}

    def update(self, problem: NetworkProblem, masks: Masks) -> dict[str, Tensor]:
        """Return the minimum of the quadratic on masks.

        Args:
            problem: the network.
            masks: layer name to mask.
        """
        return problem.by_layer(regression_of(problem).back_solve(problem.vector(masks)))


def _pools(problem: NetworkProblem, weight: Tensor, removed: Tensor) -> Iterator[Tensor]:
    """Yield which weights may be swapped with one another, (p,) each time.

    Args:
        problem: the network.
        weight: its weights (p,).
        removed: which are removed to begin with, (p,).
    """
    allowed = problem.vector(problem.dense) != 0
    edges = torch.tensor([0, *problem.sizes]).cumsum(0).tolist()
    layers = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    pattern = problem.pattern
    if isinstance(pattern, Unstructured) and pattern.scope == "global" and pattern.cap == 1:
        for place in layers:
            largest = int(weight[place].abs().masked_fill(removed[place], -1.0).argmax())
            allowed[place][largest] = False
        yield allowed
        return
    for place in layers:
        inside = torch.zeros_like(allowed)
        inside[place] = allowed[place]
        yield inside
