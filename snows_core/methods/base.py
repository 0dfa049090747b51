"""What a layer-wise method is and what it gives back: all that the sweep knows of methods.

A method sees one layer at a time, through a :class:`~snows_core.methods.problem.LayerProblem`, and answers with a
:class:`LayerSolution`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from snows_core.distributed import Processes
from snows_core.loss.options import LossOptions
from snows_core.methods.choose_k import ladder
from snows_core.methods.origin import Origin
from snows_core.methods.problem import LayerProblem
from snows_core.network.graph import Layer, Network, Segment
from snows_core.settings import K, Recipe


@dataclass(frozen=True)
class Needs:
    """What the sweep has to hold ready for a method; memory is planned from it.

    Attributes:
        targets: "dense" where targets come from the dense network on dense inputs, "pruned" where the dense network
            runs on the pruned one's values at the input of the residual unit (:mod:`snows_core.network.residual`).
        batch_size: images per batch at most.
        mini_batches: each step sees one batch of ``batch_size`` images, not all of them.
        row_factors: whether Cholesky factors of the input's Gram matrix are kept.
        loss: how its K-step loss is weighed and computed; graphs are probed with it.
    """

    targets: Literal["dense", "pruned"] = "dense"
    batch_size: int = 64
    mini_batches: bool = False
    row_factors: bool = False
    loss: LossOptions = field(default_factory=lambda: LossOptions("gauss-newton", normalise=True))


@dataclass(frozen=True)
class LayerStatistics:
    """What a solve reached and what it cost: columns of the report.

    Attributes:
        k: operations behind the layer that the loss saw.
        loss_masked: K-step loss of the masked dense weights.
        loss_start: where the solve began.
        loss_end: where it ended.
        newton_steps: Newton steps taken.
        products: curvature products.
        image_products: curvature products times the images of each.
        stop: why it ended, a sentence.
        seconds: wall-clock time, filled in by the sweep.
    """

    k: int
    loss_masked: float
    loss_start: float
    loss_end: float
    newton_steps: int = 0
    products: int = 0
    image_products: int = 0
    stop: str = ""
    seconds: float = 0.0

    def as_row(self) -> dict[str, Any]:
        """Return the columns of the report."""
        return asdict(self)


@dataclass(frozen=True)
class LayerSolution:
    """The answer of a method.

    Attributes:
        weight: the layer's new weight, of its shape, zero where the mask is False.
        mask: bool, True where a weight is kept; the problem's own, unless the method chooses masks.
        statistics: what it reached and cost.
    """

    weight: Tensor
    mask: Tensor
    statistics: LayerStatistics

    def of_main(self, processes: Processes) -> LayerSolution:
        """Return the same with the weight and mask of the first of several ``processes``."""
        weight, mask = (processes.from_main(tensor) for tensor in (self.weight, self.mask))
        return replace(self, weight=weight, mask=mask)


class LayerMethod(ABC):
    """A layer-wise method: it solves one layer at a time, whatever network the layer is from.

    A new one is a file with a class of this kind, and one line in :data:`snows_core.methods.METHODS`.

    Args:
        recipe: settings; a method reads those that it knows.
        k: operations behind a layer that its loss sees, or "auto".

    Attributes:
        chooses_masks: whether ``solve`` chooses a mask (``mask=`` of :func:`snows_core.prune.prune`).
        updates_weights: whether ``solve`` re-fits the kept weights (``update=``).
        improves_masks: whether a method that chooses masks begins at ``problem.before.mask``, made by a pattern of any
            scope or given by the caller, instead of making its own.
        chooses_groups: whether a method that chooses masks can keep N of every M.
        gradient_steps: gradients of its loss that a solve takes, and no curvature products; 0 where it takes products
            or solves in closed form. Its estimate asks.
        origin: its paper, cost and limits, for the table of methods; every class of the table has its own.
    """

    origin: ClassVar[Origin]
    chooses_masks: ClassVar[bool] = False
    updates_weights: ClassVar[bool] = True
    improves_masks: ClassVar[bool] = False
    chooses_groups: ClassVar[bool] = True
    gradient_steps: ClassVar[int] = 0

    def __init__(self, recipe: Recipe, k: K) -> None:
        self.recipe, self.k = recipe, k

    @property
    def needs(self) -> Needs:
        """What the sweep has to hold ready."""
        recipe = self.recipe
        options = LossOptions("gauss-newton", recipe.normalise, tap_rule=recipe.tap_rule)
        return Needs(batch_size=recipe.batch_size, loss=options)

    def segments(self, network: Network, layer: Layer) -> tuple[Segment, ...]:
        """Return the segments to choose from, shortest first; losses of the report are those of the longest.

        Args:
            network: the traced network.
            layer: the layer that is to be solved.

        Returns:
            One segment, or several where the method chooses K.
        """
        return ladder(network, layer, self.k, self.needs.loss.tap_rule)

    def closed_form(self, segment: Segment) -> bool:
        """Tell whether the layer of a ``segment`` is solved without curvature products; its estimate asks."""
        return True

    def gram_images(self, mask: Tensor, positions: float, count: int) -> int | None:
        """Return how many images the Gram matrix of a layer's input is taken from; None for all. Its estimate asks.

        Args:
            mask: the layer's mask.
            positions: output positions of the layer for an image.
            count: calibration images.
        """
        return None

    @abstractmethod
    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Solve the layer of one ``problem``."""

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask alone that a method chooses in a ``problem``, for another method to re-fit weights on."""
        return self.solve(problem).mask

    def solution(self, problem: LayerProblem, weight: Tensor, mask: Tensor, stop: str) -> LayerSolution:
        """Return a solution without Newton steps, its losses measured on the segment of the report.

        Args:
            problem: what was solved.
            weight: new weight, zero where the mask is False.
            mask: its mask.
            stop: one sentence for the report.
        """
        segment = problem.segments[-1]
        loss = problem.reconstruction(segment, self.needs.loss, len(problem.sizes))
        before, after = (loss.value(torch.where(mask, w, 0.0)) for w in (problem.weight, weight))
        return LayerSolution(weight, mask, LayerStatistics(segment.k, before, before, after, stop=stop))
