"""Scores of weights that look at calibration images, at the weights that a stage begins with.

One pass over the layers, front to back, as any sweep makes it: a method that scores takes the place of one that solves,
and each layer's input is what the current weights of the layers before it give. A Fisher needs no such pass: it is one
backward pass of the whole network. In a mixture each term is divided by its mean over the weights of all layers, and
they are added.

On ResNet-20, none of those tried chose better masks than magnitude where the kept weights are re-fitted afterwards;
magnitude is the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.loss.fisher import diagonal_fisher
from snows_core.masks.saliency import IMAGE_SALIENCIES
from snows_core.methods import SCORE_TERMS, Scoring
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings, Saliency, get_recipe
from snows_core.sweep.select import PrunableLayer
from snows_core.sweep.steps import LayerSteps
from snows_core.sweep.sweep import Sweep

FISHER_SEED = 7_919  # between the seeds of layers, which count from seed * 1_000_003


def needs_images(settings: PruneSettings) -> bool:
    """Tell whether masks of these settings are made from scores that look at images."""
    by_saliency = settings.mask in (None, "magnitude") and settings.masks is None
    return by_saliency and isinstance(settings.saliency, str) and settings.saliency in IMAGE_SALIENCIES


def stand_in(settings: PruneSettings) -> str | Saliency:
    """Return the saliency that looks at weights alone: magnitude stands in for one that looks at images."""
    return "magnitude" if settings.saliency in tuple(IMAGE_SALIENCIES) else settings.saliency


def scoring_of(settings: PruneSettings) -> Scoring | None:
    """Return the method that scores layer by layer for these settings; None for a saliency without such a term."""
    terms = IMAGE_SALIENCIES[str(settings.saliency)]
    term = next((term for term in terms if term in SCORE_TERMS), None)
    return None if term is None else Scoring(get_recipe(settings.recipe), settings.k, term)


class ImageScores:
    """Scores of one saliency; what does not change from stage to stage is kept.

    Args:
        network: the traced network, on the device of the run.
        layers: layers to score, in execution order.
        images: calibration images (N, C, H, W), on that device or in host memory.
        settings: saliency, recipe, K, seed and so on; :func:`needs_images` holds for them.
    """

    def __init__(
        self, network: Network, layers: Sequence[PrunableLayer], images: Tensor, settings: PruneSettings
    ) -> None:
        self.network, self.layers, self.images, self.settings = network, layers, images, settings
        self.terms = IMAGE_SALIENCIES[str(settings.saliency)]
        self.scoring = scoring_of(settings)
        self._sweep: Sweep | None = None

    def at(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scores at the current weights.

        Args:
            weights: layer name to weight; a layer that is not there has its dense one.

        Returns:
            Layer name to scores of the weight's shape. What is zero in the dense network has the lowest.

        Raises:
            SnowsError: with "fisher", where the network's output is not one tensor of finite logits.
        """
        dense = {entry.name: self.network.weight(entry.layer) for entry in self.layers}
        current = {name: weights.get(name, weight) for name, weight in dense.items()}
        terms = [self._fisher(current) if term == "fisher" else self._layer_wise(current) for term in self.terms]
        if len(terms) > 1:
            terms = [_of_mean_one(scores) for scores in terms]
        return {
            name: torch.where(weight != 0, sum(scores[name] for scores in terms[1:]) + terms[0][name], -1.0)
            for name, weight in dense.items()
        }

    def _layer_wise(self, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.scoring is not None, "there is such a term"
        masks = {name: weight != 0 for name, weight in current.items()}
        steps, settings = LayerSteps(self.scoring), self.settings
        if self._sweep is None:
            self._sweep = Sweep(
                self.network, self.layers, masks, steps, self.images, settings.max_memory, settings.seed, current
            )
        else:
            self._sweep = self._sweep.again(masks, current, steps)
        self._sweep.run(settings.progress, {}, f"scoring by {settings.saliency}")
        if self._sweep.interrupted:
            raise KeyboardInterrupt
        return dict(self.scoring.scores)

    def _fisher(self, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {entry.name: entry.layer.weight_name for entry in self.layers}
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + FISHER_SEED)
        weights = {names[name]: weight for name, weight in current.items()}
        found = diagonal_fisher(self.network, weights, self.images, generator)
        return {name: weight.square() * found[names[name]] for name, weight in current.items()}


def _of_mean_one(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide scores by their mean over the weights of all layers; all-zero ones stay."""
    total = sum(float(score.to(widest(score.device)).sum()) for score in scores.values())
    mean = total / sum(score.numel() for score in scores.values())
    return {name: score / mean if mean > 0 else score for name, score in scores.items()}
