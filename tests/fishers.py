"""Random gradients and the dense empirical Fisher of them, for solvers that never form it."""

import torch


def gaussian(*shape, seed=0):
    """Return standard normal numbers in double precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def empirical_fisher(gradients, damping):
    """Return ``G'G / m + damping I`` of gradients (m, p)."""
    count, size = gradients.shape
    return gradients.mT @ gradients / count + damping * torch.eye(size, dtype=gradients.dtype)


def largest(count):
    """Return the function that marks so many of the largest scores."""
    return lambda scores: torch.zeros_like(scores, dtype=torch.bool).index_fill(0, scores.topk(count).indices, True)
