"""Adam on a loss with all its images in every step: the first-order rival of Newton's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Slope(Protocol):
    """A loss that has a gradient."""

    def value(self, weight: Tensor) -> float:
        """Return the loss at a ``weight``."""

    def gradient(self, weight: Tensor) -> tuple[float, Tensor]:
        """Return loss and gradient at a ``weight``, the latter of its shape and zero off the mask."""


@dataclass(frozen=True)
class AdamSolution:
    """What Adam found.

    Attributes:
        weight: of the lowest loss on the way, the start and the end included.
        losses: at the start, and at that weight.
    """

    weight: Tensor
    losses: tuple[float, float]


def adam(objective: Slope, start: Tensor, steps: int, rate: float) -> AdamSolution:
    """Take Adam steps (Kingma & Ba 2015, with their constants) whose rate falls to nothing along a half cosine.

    Args:
        objective: the loss; where its gradient is zero, a weight stays.
        start: zero off the mask.
        steps: how many; each takes one gradient.
        rate: of the first, the largest.

    Returns:
        The best of all weights on the way, so that the loss never rises.
    """
    free = start.clone()
    optimiser = torch.optim.Adam([free], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    first, best, found = objective.value(start) if steps == 0 else float("inf"), float("inf"), start
    for step in range(steps):
        loss, free.grad = objective.gradient(free)
        first = loss if step == 0 else first
        if loss < best:
            best, found = loss, free.clone()
        optimiser.step()
        schedule.step()
    if (loss := objective.value(free)) < best:
        best, found = loss, free
    return AdamSolution(found, (first, best))
