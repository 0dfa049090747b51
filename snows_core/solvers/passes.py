"""Passes over a set of examples in random order, batch by batch: what every training loop has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def passes(
    count: int, batches: int | list[int], epochs: int, generator: torch.Generator, step: Callable[[Tensor], float]
) -> Iterator[float]:
    """Take a step with every batch of every pass; the caller follows pass by pass.

    Args:
        count: examples, N.
        batches: examples a batch, the last one being what is left; or the size of each, N in all.
        epochs: passes over all examples, each in an order of its own.
        generator: draws the orders.
        step: takes the positions (n,) of a batch, makes a step and returns its mean loss.

    Yields:
        The mean loss over the examples of each pass, as it was when their step was made.

    >>> seen = []
    >>> list(passes(3, [2, 1], 2, torch.Generator().manual_seed(0), lambda batch: seen.append(len(batch)) or 1.0))
    [1.0, 1.0]
    >>> seen
    [2, 1, 2, 1]
    """
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.split(torch.randperm(count, generator=generator), batches):
            total += step(chosen) * len(chosen)
        yield total / count
