"""How many of the calibration images a layer's solve reads, where each of them shows the layer at many positions.

A row of a weight has as many unknowns as it keeps weights, and every output position of every image says something
about them. Images are in random order, so the first ones are a fair sample: sub-sampled Newton (Byrd et al. 2011,
Roosta-Khorasani and Mahoney 2019), with sizes that follow from the layer's shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from snows_core.settings import Recipe

# Output positions for each unknown of a row, and images at least. Measured on ResNet-20 and EfficientNet-Lite0: with
# more of them, agreement stays what it is.
LOSS_POSITIONS, LOSS_IMAGES = 2000, 64
GRAM_POSITIONS, CURVATURE_POSITIONS, IMAGES = 400, 200, 32
SHARE = 0.3  # curvature from more than this share of the images saves too little for the risk that it misleads


@dataclass(frozen=True)
class Enough:
    """Images of one layer's solve, each rounded up to whole batches later; None is all of them.

    Attributes:
        loss: for the loss and its gradient.
        gram: for the Gram matrix of a start by least squares, and of the preconditioner.
        curvature: for curvature products, at first.
    """

    loss: int | None = None
    gram: int | None = None
    curvature: int | None = None


def enough_for(recipe: Recipe, mask: Tensor, positions: float, count: int) -> Enough:
    """Return how many images tell enough about a layer.

    Args:
        recipe: how it is solved; one that is not ``sampled`` reads all images everywhere but in products, and one by
            mini-batches has its own parts.
        mask: the layer's mask, (out, ...).
        positions: output positions of the layer for an image.
        count: calibration images.

    Returns:
        The numbers.
    """
    curvature = recipe.newton.curvature_images
    if recipe.mini_batches or not recipe.sampled:
        return Enough(curvature=curvature)
    unknowns = float(mask.flatten(1).sum(1).float().mean())

    def images(positions_per_unknown: float, least: int) -> int:
        return max(least, math.ceil(positions_per_unknown * unknowns / positions))

    if curvature is not None:
        some = images(CURVATURE_POSITIONS, IMAGES)
        curvature = curvature if some > SHARE * count else min(curvature, some)
    return Enough(images(LOSS_POSITIONS, LOSS_IMAGES), images(GRAM_POSITIONS, IMAGES), curvature)
