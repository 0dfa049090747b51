"""What a method that looks at the whole network is: it gives masks, and perhaps weights, before the sweep.

A layer-wise method (:mod:`snows_core.methods.base`) sees one layer when the sweep reaches it. These see all layers at
once, through a :class:`~snows_core.methods.network_problem.NetworkProblem`. Any update may follow their masks; where it
is their own, :class:`~snows_core.methods.given_weights.GivenWeights` hands their weights to the sweep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from snows_core.masks.patterns import Masks
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import Origin


@dataclass(frozen=True)
class NetworkSolution:
    """The answer of a method for the whole network.

    Attributes:
        masks: layer name to bool tensor, True where a weight is kept.
        weights: layer name to weight, zero where the mask is False.
    """

    masks: Masks
    weights: dict[str, Tensor]


class NetworkMethod(ABC):
    """A method that looks at the whole network.

    A new one is a file with a class of this kind, and one line in :data:`snows_core.methods.NETWORK_METHODS`.

    Attributes:
        origin: its paper, cost and limits, for the table of methods.
        updates_weights: whether it re-fits the kept weights, too (``update=``).
        reads_labels: whether it takes gradients of the loss, with labels given or drawn.
        chooses_groups: whether it can choose N:M masks.
        chooses_units: whether it can choose structured masks: whole channels, neurons and heads.
        chooses_weights: whether it can choose any others.
        layer_update: name of the layer-wise method that its update is, where its paper re-fits layer by layer; its own
            :meth:`update` is not asked then.
        bounds_flops: whether it can bound the operations of what it keeps (``flops=``).
    """

    origin: ClassVar[Origin]
    updates_weights: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True
    chooses_groups: ClassVar[bool] = True
    chooses_units: ClassVar[bool] = False
    chooses_weights: ClassVar[bool] = True
    layer_update: ClassVar[str] = ""
    bounds_flops: ClassVar[bool] = False

    @abstractmethod
    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of all layers of a ``problem``."""

    def update(self, problem: NetworkProblem, masks: Masks) -> dict[str, Tensor]:
        """Return weights on masks, whoever chose these; without an update of its own, the current ones.

        Args:
            problem: the network.
            masks: layer name to mask.
        """
        return {layer: torch.where(masks[layer], weight, 0.0) for layer, weight in problem.weights.items()}

    def solve(self, problem: NetworkProblem) -> NetworkSolution:
        """Choose and update a ``problem`` at once."""
        masks = self.choose(problem)
        return NetworkSolution(masks, self.update(problem, masks))
