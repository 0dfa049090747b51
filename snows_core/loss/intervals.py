"""How sure a share is that was counted on so many images."""

from __future__ import annotations

import math

QUANTILE = 1.959964
"""Of the normal distribution: 95 % lie within so many standard deviations."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's interval, at 95 %, of a share that was observed in ``count`` independent images.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).

    >>> [round(bound, 3) for bound in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    square = QUANTILE**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = QUANTILE / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
