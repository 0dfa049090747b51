"""Which cells a set of test images tells apart: paired comparisons, image by image, at the level of 95 %.

All cells answer the same images, so that what makes an image hard is in both of a pair and drops out of their
difference. Of answers that are right or wrong, McNemar's test in its exact form counts the images on which the two
differ (Q. McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or Percentages",
Psychometrika 12, 1947): if neither were better, each would be right in half of them. Of other figures (KL, cosine,
shares of pixels) it is the normal interval of the mean of the differences, ``1.96 s / sqrt(n)`` (Student, "The Probable
Error of a Mean", Biometrika 6, 1908, for large n).

Every cell is compared with the best alone, chosen by the same images, and no correction is made for how many cells
there are: a tie says that these images do not tell the two apart, not that the two are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from snows_core.loss.intervals import QUANTILE

LEVEL = 0.05  # of chance


@dataclass(frozen=True)
class Pair:
    """Two cells compared.

    Attributes:
        difference: mean over the images of the one's figure minus the other's.
        interval: half the width of its paired normal interval of 95 %.
        tie: whether these images do not tell the two apart.
    """

    difference: float
    interval: float
    tie: bool


def compare_pair(values: Tensor, best: Tensor) -> Pair:
    """Compare a cell with the best one.

    Args:
        values: (N,), a figure of each image.
        best: (N,), that of the best cell for the same images.

    Returns:
        The difference, its interval, and whether it is a tie.

    >>> import torch
    >>> right = torch.ones(100)
    >>> compare_pair(right.index_fill(0, torch.tensor([7]), 0.0), right).tie
    True
    >>> compare_pair(torch.zeros(100), right).tie
    False
    """
    differences = (values - best).double()
    count = len(differences)
    mean = float(differences.mean())
    half = QUANTILE * float(differences.std()) / math.sqrt(count) if count > 1 else math.inf
    if _is_binary(values) and _is_binary(best):
        return Pair(mean, half, mcnemar(int((differences > 0).sum()), int((differences < 0).sum())) >= LEVEL)
    return Pair(mean, half, mean == 0 or abs(mean) < half)


def mcnemar(one: int, other: int) -> float:
    """Return the two-sided exact probability that chance alone divides images as unevenly between two cells.

    Args:
        one: images that only the one has right.
        other: images that only the other has right.

    >>> mcnemar(0, 5), mcnemar(0, 6)
    (0.0625, 0.03125)
    """
    count = one + other
    tail = sum(math.comb(count, i) for i in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**count)


def _is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())
