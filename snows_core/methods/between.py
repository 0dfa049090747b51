"""The re-fit between two stages: least squares on as many images as tell enough, and no loss for a report.

Its weights choose the next mask and are thrown away after that, so that neither the last digit nor the K-step loss is
worth its price here.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from snows_core.methods.base import LayerSolution, LayerStatistics, Needs
from snows_core.methods.layerwise import CLOSED_FORM, least_squares
from snows_core.methods.problem import LayerProblem
from snows_core.methods.sampled import SampledMethod

UNMEASURED = float("nan")  # a loss that nobody asked for


class BetweenStages(SampledMethod):
    """Re-fit a layer by masked least squares on a sample of the images.

    Args:
        recipe: its ridge and batch size are used.
        k: always 0.
    """

    @property
    def needs(self) -> Needs:
        """Row factors, beside what every method needs."""
        return replace(super().needs, row_factors=True)

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the least-squares weight of a ``problem``, or the masked dense one where it is not finite."""
        images = self.gram_images(problem.mask, problem.positions, problem.images)
        _, solved = least_squares(problem, self.recipe.ridge, images)
        weight = solved if bool(torch.isfinite(solved).all()) else problem.masked
        statistics = LayerStatistics(0, UNMEASURED, UNMEASURED, UNMEASURED, stop=CLOSED_FORM)
        return LayerSolution(weight, problem.mask, statistics)
