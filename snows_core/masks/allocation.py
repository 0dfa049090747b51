"""Allocation: how much each layer loses, so that all of them together lose the share that a pattern asks for.

From the weights alone there are three closed forms: "uniform", the same share in each layer; "erk", the Erdos-Renyi
kernel rule (Evci et al. 2020, "Rigging the Lottery", section 3); "lamp", one threshold for layer-adaptive magnitudes
(Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 4). From measured losses it is a
multiple-choice knapsack, solved by dynamic programming (:func:`least_loss`).

No layer is emptied, and none loses more than the pattern's cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from snows_core.masks.lowest import exactly
from snows_core.masks.patterns import PerLayer, Unstructured

UNITS = 4000  # into which the weights that stay are divided for the dynamic programme
FINE = 48  # shares of a layer that it may choose among, between those measured


def allocate(weights: Mapping[str, Tensor], pattern: Unstructured, allocation: str) -> PerLayer:
    """Return what each layer loses by one of :data:`ALLOCATIONS`.

    Args:
        weights: layer name to weight.
        pattern: the overall sparsity, and the cap of a layer; its scope does not count.
        allocation: "uniform", "erk", "lamp", or "global" for one threshold of plain magnitude.

    Returns:
        The sparsity of each layer. The numbers of weights that they take away add up to that of the pattern exactly,
        unless caps or the one weight that every layer keeps forbid it.

    >>> wide, narrow = torch.ones(8, 8), torch.ones(2, 8)
    >>> print(allocate({"wide": wide, "narrow": narrow}, Unstructured(0.5), "erk"))
    wide=0.61,narrow=0.06
    """
    return ALLOCATIONS[allocation](weights, pattern)


def _uniform(weights: Mapping[str, Tensor], pattern: Unstructured) -> PerLayer:
    sizes = sizes_of(weights)
    return _of_counts(counts(dict(sizes), sizes, pattern), sizes)


def _erk(weights: Mapping[str, Tensor], pattern: Unstructured) -> PerLayer:
    """Keep numbers of weights in proportion to inputs + outputs + height + width of the kernel, all of it at most."""
    sizes = sizes_of(weights)
    wishes = {name: float(sum(weight.shape)) for name, weight in weights.items()}
    return _of_counts(counts(wishes, sizes, pattern), sizes)


def _lamp(weights: Mapping[str, Tensor], pattern: Unstructured) -> PerLayer:
    return _by_threshold({name: lamp_scores(weight) for name, weight in weights.items()}, pattern)


def _global(weights: Mapping[str, Tensor], pattern: Unstructured) -> PerLayer:
    return _by_threshold({name: weight.abs() for name, weight in weights.items()}, pattern)


ALLOCATIONS: dict[str, Callable[[Mapping[str, Tensor], Unstructured], PerLayer]] = {
    "uniform": _uniform,
    "erk": _erk,
    "lamp": _lamp,
    "global": _global,
}
"""Name to closed form."""


def _by_threshold(scores: Mapping[str, Tensor], pattern: Unstructured) -> PerLayer:
    sizes = sizes_of(scores)
    masks = Unstructured(pattern.sparsity, "global", pattern.cap).masks(scores)
    return _of_counts({name: int(mask.sum()) for name, mask in masks.items()}, sizes)


def lamp_scores(weight: Tensor) -> Tensor:
    r"""Return the layer-adaptive magnitude of every weight: its square relative to all squares that are not smaller.

    .. math::  \text{score}(u) = W[u]^2 / \sum_{v \ge u} W[v]^2

    with the weights of a layer in ascending order of their magnitude (Lee et al. 2021, equation 4).

    Args:
        weight: of any shape.

    Returns:
        Scores of its shape, float64, on its device; the largest weight of a layer has 1, zeros have 0.

    >>> lamp_scores(torch.tensor([1.0, -2.0, 2.0])).tolist()
    [0.1111111111111111, 0.5, 1.0]
    """
    squares, order = weight.detach().flatten().cpu().double().square().sort(stable=True)  # (n,) each
    behind = squares.flip(0).cumsum(0).flip(0)  # (n,): the sum of a square and all behind it
    scores = torch.empty_like(squares)
    scores[order] = torch.where(squares > 0, squares / behind, 0.0)
    return scores.view(weight.shape).to(weight.device)


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of weights of each layer."""
    return {name: weight.numel() for name, weight in weights.items()}


def bounds(sizes: Mapping[str, int], pattern: Unstructured) -> tuple[dict[str, int], int]:
    """Return how many weights each layer keeps at least, and how many all of them keep together."""
    least = {name: max(1, size - int(exactly(pattern.cap) * size)) for name, size in sizes.items()}
    whole = sum(sizes.values())
    return least, max(whole - round(exactly(pattern.sparsity) * whole), sum(least.values()))


def counts(wishes: Mapping[str, float], sizes: Mapping[str, int], pattern: Unstructured) -> dict[str, int]:
    """Return how many weights each layer keeps: in proportion to a wish, within its bounds, the right number in all.

    Args:
        wishes: layer name to a positive number.
        sizes: layer name to its number of weights.
        pattern: overall sparsity and cap.

    Returns:
        Layer name to a number; fractions are rounded by largest remainder, the first layer first among equal ones.
    """
    least, total = bounds(sizes, pattern)

    def clipped(scale: float) -> dict[str, float]:
        return {name: min(max(scale * wish, least[name]), sizes[name]) for name, wish in wishes.items()}

    low, high = 0.0, max(sizes[name] / wish for name, wish in wishes.items())
    for _ in range(200):  # halved until floating point has no number between the two
        middle = (low + high) / 2
        low, high = (middle, high) if sum(clipped(middle).values()) <= total else (low, middle)
    shares = clipped(low)
    kept = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: kept[name] - shares[name])  # stable: the order of layers decides
    while missing := total - sum(kept.values()):
        for name in [name for name in by_remainder if kept[name] < sizes[name]][:missing]:
            kept[name] += 1
    return kept


def _of_counts(kept: Mapping[str, int], sizes: Mapping[str, int]) -> PerLayer:
    """Return the sparsities, in no more digits than it takes, that leave exactly so many weights."""
    return PerLayer({name: _shortest(size - kept[name], size) for name, size in sizes.items()})


def _shortest(removed: int, size: int) -> float:
    shares = (round(removed / size, digits) for digits in range(2, 18))
    return next(share for share in shares if round(exactly(share) * size) == removed)


def halfway(one: PerLayer, other: PerLayer, sizes: Mapping[str, int], pattern: Unstructured) -> PerLayer:
    """Return what lies between two allocations: of each layer the geometric mean of what they keep, brought to budget.

    Args:
        one: sparsity of each layer.
        other: likewise.
        sizes: layer name to its number of weights.
        pattern: overall sparsity and cap.

    Returns:
        The sparsity of each layer, exact as in :func:`allocate`.
    """
    kept = {name: (1 - one.sparsities[name]) * (1 - other.sparsities[name]) for name in sizes}
    return _of_counts(counts({name: sizes[name] * math.sqrt(kept[name]) for name in sizes}, sizes, pattern), sizes)


def allocate_by_losses(
    losses: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], pattern: Unstructured, power: float = 1.0
) -> PerLayer:
    """Return what each layer loses, so that the sum over layers of ``loss ^ power`` is least.

    Between measured numbers of weights a loss is interpolated, straight in logarithms; a whole layer has no loss.

    Args:
        losses: layer name to loss by number of weights that stay.
        sizes: layer name to its number of weights.
        pattern: overall sparsity and cap.
        power: below 1 it spares layers that lose little, above 1 the worst one counts most.

    Returns:
        The sparsity of each layer, exact as in :func:`allocate`.
    """
    least, total = bounds(sizes, pattern)
    unit = max(1, total // UNITS)
    options: dict[str, list[int]] = {}
    costs: list[list[float]] = []
    for name, size in sizes.items():
        lowest = max(least[name], min(losses[name]))
        fine = (round(lowest * (size / lowest) ** (step / FINE)) for step in range(FINE + 1))
        options[name] = sorted(set(fine))
        costs.append([_interpolated(losses[name], kept, size) ** power for kept in options[name]])
    chosen = least_loss(costs, [[kept // unit for kept in options[name]] for name in sizes], total // unit)
    kept = {name: float(options[name][choice]) for name, choice in zip(sizes, chosen, strict=True)}
    return _of_counts(counts(kept, sizes, pattern), sizes)


def _interpolated(losses: Mapping[int, float], kept: int, size: int) -> float:
    """Return a layer's loss at a number of weights that stay."""
    if kept >= size:
        return 0.0
    known = sorted(losses)
    above = next((count for count in known if count >= kept), None)
    if above == kept:
        return losses[kept]
    below = max((count for count in known if count < kept), default=known[0])
    if above is None:  # towards the whole layer, which has no loss: straight
        return losses[below] * (size - kept) / (size - below)
    if above == below or min(losses[below], losses[above]) <= 0:
        return max(losses[above], 0.0)
    way = math.log(kept / below) / math.log(above / below)
    return math.exp((1 - way) * math.log(losses[below]) + way * math.log(losses[above]))


def least_loss(costs: Sequence[Sequence[float]], weights: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Choose one option of each layer, so that their weights are within a budget and their costs add up to the least.

    The multiple-choice knapsack by dynamic programming: the least cost of the first layers is kept for every part of
    the budget.

    Args:
        costs: for each layer, the cost of each of its options.
        weights: likewise, their whole, not negative weights.
        budget: what the weights of the chosen options may add up to.

    Returns:
        The number of each layer's option; the lightest ones where even they are above the budget.

    >>> least_loss([[3.0, 1.0], [9.0, 4.0, 0.0]], [[1, 3], [1, 2, 4]], 5)
    [0, 2]
    """
    lightest = [min(range(len(layer)), key=layer.__getitem__) for layer in weights]
    budget = max(budget, sum(layer[choice] for layer, choice in zip(weights, lightest, strict=True)))
    best = torch.zeros(budget + 1, dtype=torch.float64)  # (budget + 1,): least cost with at most so many units
    choices: list[Tensor] = []
    for own_costs, own_weights in zip(costs, weights, strict=True):
        ways = torch.full((len(own_costs), budget + 1), math.inf, dtype=torch.float64)
        for option, (cost, weight) in enumerate(zip(own_costs, own_weights, strict=True)):
            if weight <= budget:
                ways[option, weight:] = best[: budget + 1 - weight] + cost
        best, chosen = ways.min(0)
        choices.append(chosen)
    found: list[int] = []
    for own_weights, chosen in zip(reversed(weights), reversed(choices), strict=True):
        found.append(int(chosen[budget]))
        budget -= own_weights[found[-1]]
    return found[::-1]
