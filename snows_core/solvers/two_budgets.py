r"""The weights of highest value under two budgets: how many there are, and what they cost, layer by layer.

.. math::  \max_z \sum_j v_j z_j, \quad \sum_j z_j \le n, \quad \sum_j f_{l(j)} z_j \le F, \quad z_j \in \{0, 1\}

is a knapsack in which all weights of a layer cost the same (Meng et al. 2024, "FALCON", whose projection it is). For a
price of cost its Lagrangian keeps in each layer the weights above ``t + price f_l``; the price is found by bisection,
and under each the threshold t. What the last weight leaves of the budgets is filled up by value, so that the relaxed
optimum is missed by a weight or two. (From memory of the paper, whose text was not at hand; its own solver of the
relaxation may go another way.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
HALVINGS = 60  # of an interval of prices or thresholds: more than a double tells apart


@dataclass(frozen=True)
class Layers:
    """What each layer has to offer.

    Attributes:
        values: of each layer, in ascending order, none negative.
        costs: of one weight of each layer.
        least: how many of each layer stay whatever they cost; no more than it has.
    """

    values: Sequence[Numbers]
    costs: Sequence[float]
    least: Sequence[int]

    @property
    def beyond(self) -> float:
        """A number above all values, of their size."""
        top = max((float(values[-1]) for values in self.values if len(values)), default=0.0)
        return 2 * top if top > 0 else 1.0

    def counts(self, threshold: float, price: float) -> list[int]:
        """Return how many weights of each layer are worth ``threshold`` beyond their cost at a ``price``."""
        offers = zip(self.values, self.costs, self.least, strict=True)
        return [
            max(least, len(values) - int(values.searchsorted(threshold + price * cost)))
            for values, cost, least in offers
        ]

    def cost(self, counts: Sequence[int]) -> float:
        """Return what so many weights of each layer cost together."""
        return float(sum(cost * count for cost, count in zip(self.costs, counts, strict=True)))


def highest_within(layers: Layers, count: int, budget: float) -> list[int] | None:
    """Return how many weights of each layer stay, always those of its highest values.

    Args:
        layers: values and costs.
        count: how many stay at most.
        budget: what they cost at most.

    Returns:
        The numbers; None where what stays whatever it costs is too much already.
    """
    least = list(layers.least)
    if sum(least) > count or layers.cost(least) > budget:
        return None
    free = _of_price(layers, count, 0.0)
    if layers.cost(free) <= budget:
        return _filled(layers, free, count, budget)
    low, high = 0.0, layers.beyond / min(cost for cost in layers.costs if cost > 0)  # a price that nothing is worth
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if layers.cost(_of_price(layers, count, middle)) <= budget else (middle, high)
    return _filled(layers, _of_price(layers, count, high), count, budget)


def _of_price(layers: Layers, count: int, price: float) -> list[int]:
    """Return the numbers of highest value beyond cost at a price, none worth less than its cost, ``count`` at most."""
    kept = layers.counts(0.0, price)
    if sum(kept) <= count:
        return kept
    low, high = 0.0, layers.beyond
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(layers.counts(middle, price)) <= count else (middle, high)
    return layers.counts(high, price)


def _filled(layers: Layers, counts: list[int], count: int, budget: float) -> list[int]:
    """Add one weight after the other, the highest value that fits first, until none fits."""
    counts, spent, cost = list(counts), sum(counts), layers.cost(counts)
    while spent < count:
        fitting = [
            (float(values[-1 - have]), -layers.costs[layer], layer)
            for layer, (values, have) in enumerate(zip(layers.values, counts, strict=True))
            if have < len(values) and values[-1 - have] > 0 and cost + layers.costs[layer] <= budget
        ]
        if not fitting:
            break
        *_, layer = max(fitting)
        counts[layer] += 1
        spent, cost = spent + 1, cost + layers.costs[layer]
    return counts
