"""Optimal Brain Surgeon with the inverse of an empirical Fisher, however that is had: scores and update.

Taking weight j away and moving the others costs ``w_j^2 / (2 [F^-1]_jj)``, the move is ``-w_j F^-1 e_j / [F^-1]_jj``
(Hassibi & Stork 1992, equation 5). Of many weights at once the scores are those of each alone and the moves add up, as
in WoodFisher and M-FAC: what removed weights do to one another is not seen.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from snows_core.masks.patterns import Masks
from snows_core.methods.network_method import NetworkMethod, NetworkSolution
from snows_core.methods.network_problem import NetworkProblem


class Inverse(Protocol):
    """The inverse of an empirical Fisher of all weights (p,)."""

    def diagonal(self) -> Tensor:
        """Return the diagonal (p,)."""

    def times(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (p,)."""


class Surgeon(NetworkMethod):
    """Keep the weights whose removal costs most, and move them by what the others leave."""

    @abstractmethod
    def inverse(self, problem: NetworkProblem) -> Inverse:
        """Return the inverse Fisher of the weights of a ``problem``."""

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of the costs of a ``problem``."""
        return self._chosen(problem, self.inverse(problem).diagonal())

    def update(self, problem: NetworkProblem, masks: Masks) -> dict[str, Tensor]:
        """Return the weights after the moves of all removals.

        Args:
            problem: the network.
            masks: layer name to mask.
        """
        inverse = self.inverse(problem)
        return self._moved(problem, masks, inverse, inverse.diagonal())

    def solve(self, problem: NetworkProblem) -> NetworkSolution:
        """Choose and update a ``problem`` with one inverse."""
        inverse = self.inverse(problem)
        diagonal = inverse.diagonal()
        masks = self._chosen(problem, diagonal)
        return NetworkSolution(masks, self._moved(problem, masks, inverse, diagonal))

    @staticmethod
    def _chosen(problem: NetworkProblem, diagonal: Tensor) -> Masks:
        weight = problem.vector(problem.weights).to(diagonal.dtype)
        scores = weight.square() / (2 * diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny))
        return problem.masks(scores)

    @staticmethod
    def _moved(problem: NetworkProblem, masks: Masks, inverse: Inverse, diagonal: Tensor) -> dict[str, Tensor]:
        weight, kept = problem.vector(problem.weights).to(diagonal.dtype), problem.vector(masks)
        gone = torch.where(kept, 0.0, weight / diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny))
        return problem.by_layer(torch.where(kept, weight - inverse.times(gone), 0.0))
