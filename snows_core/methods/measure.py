"""What a layer's loss would be at several sparsities: least squares on each mask in turn, and the K-step loss of it.

Nothing is pruned: the layer keeps its dense weights, so that every layer is measured for itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from snows_core.masks.lowest import seed_of, without_lowest
from snows_core.masks.saliency import make_scores
from snows_core.methods.base import LayerSolution, LayerStatistics, Needs
from snows_core.methods.layerwise import CLOSED_FORM, least_squares
from snows_core.methods.problem import LayerProblem
from snows_core.methods.sampled import SampledMethod
from snows_core.settings import K, Recipe, Saliency


class MeasureLosses(SampledMethod):
    """Measure the K-step loss of a layer at several sparsities.

    Args:
        recipe: its ridge and batch size are used.
        k: operations behind a layer that the loss sees; of "auto", the most that may be chosen.
        sparsities: where to measure.
        saliency: see :func:`snows_core.masks.patterns.masks_for`.
        seed: decides between equal scores.

    Attributes:
        losses: layer name to loss by number of weights that stay, relative to the variance of what the loss sees.
    """

    def __init__(
        self,
        recipe: Recipe,
        k: K,
        sparsities: Sequence[float] = (),
        saliency: str | Saliency = "magnitude",
        seed: int = 0,
    ) -> None:
        super().__init__(recipe, k)
        self.sparsities, self.saliency, self.seed = sparsities, saliency, seed
        self.losses: dict[str, dict[int, float]] = {}

    @property
    def needs(self) -> Needs:
        """Row factors, beside what every method needs; losses of all layers on one scale."""
        needs = super().needs
        return replace(needs, row_factors=True, loss=replace(needs.loss, normalise=True))

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Measure the layer of a ``problem``, and leave it as it is."""
        score = make_scores({problem.name: problem.weight}, self.saliency)[problem.name]
        whole, segment = problem.mask, problem.segments[-1]
        # One Gram matrix for all masks: of the images that the densest one takes.
        images = self.gram_images(whole, problem.positions, problem.images)
        objective = problem.reconstruction(segment, self.needs.loss, len(problem.sizes))
        found: dict[int, float] = {}
        for sparsity in self.sparsities:
            problem.mask = without_lowest(score, sparsity, seed_of(self.seed, problem.name))
            _, solved = least_squares(problem, self.recipe.ridge, images)
            weight = solved if bool(torch.isfinite(solved).all()) else problem.masked
            found[int(problem.mask.sum())] = objective.value(weight, 1)
        problem.mask, self.losses[problem.name] = whole, found
        statistics = LayerStatistics(segment.k, 0.0, 0.0, 0.0, stop=CLOSED_FORM)
        return LayerSolution(problem.weight, torch.ones_like(whole), statistics)
