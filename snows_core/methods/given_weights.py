"""Weights that a method of the whole network gave before the sweep, as the update of each layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from snows_core.methods.base import LayerMethod, LayerSolution
from snows_core.methods.problem import LayerProblem
from snows_core.settings import K, Recipe


class GivenWeights(LayerMethod):
    """Hand over weights, and measure the K-step loss that they leave.

    Args:
        recipe: its batch size and loss are used.
        k: operations behind a layer that its loss sees.

    Attributes:
        weights: layer name to weight, zero off the mask; the sweep's stages fill it in.
    """

    def __init__(self, recipe: Recipe, k: K) -> None:
        super().__init__(recipe, k)
        self.weights: Mapping[str, Tensor] = {}

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the given weight of the layer of a ``problem``."""
        weight = self.weights[problem.name]
        return self.solution(problem, weight, problem.mask, "solved for the whole network before the sweep")
