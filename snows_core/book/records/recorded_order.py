"""Which recorded methods can be told apart: by their intervals, never by single points of accuracy."""

from __future__ import annotations

import itertools

import pandas as pd

from snows_core.book.records.recorded_plot import shown_pattern


def order_by_interval(frame: pd.DataFrame) -> dict[str, str]:
    """Return for each pattern the methods from the lowest to the highest, and where their intervals overlap.

    Args:
        frame: of ``read_records``, one network, with one run of a pattern and method.

    Returns:
        Pattern as readers know it to words such as "magnitude < layer-wise ~ quick", where "<" stands between methods
        whose 95 % intervals do not overlap, and "~" between those whose intervals do.
    """
    found = {}
    for pattern, runs in frame.groupby("pattern", sort=False):
        ordered = list(runs.sort_values("low").itertuples())
        words = str(ordered[0].method)
        for lower, upper in itertools.pairwise(ordered):
            words += f" {'<' if lower.high < upper.low else '~'} {upper.method}"
        found[shown_pattern(str(pattern))] = words
    return found
