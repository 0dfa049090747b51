"""Traces of a race whose tables are known."""

import pandas as pd

from snows_core.book.contests.contest import NEWTON, NO_CURVATURE


def known():
    """Two layers, two arms; on the second layer the control never gets to nine tenths."""
    rows = [
        ("a", NEWTON, 0, 0, 0.0, 1.0), ("a", NEWTON, 8, 40, 2.0, 0.50),
        ("a", NO_CURVATURE, 0, 0, 0.0, 1.0), ("a", NO_CURVATURE, 3, 0, 1.0, 0.52), ("a", NO_CURVATURE, 5, 0, 1.5, 0.53),
        ("b", NEWTON, 0, 0, 0.0, 1.0), ("b", NEWTON, 6, 30, 4.0, 0.80),
        ("b", NO_CURVATURE, 0, 0, 0.0, 1.0), ("b", NO_CURVATURE, 3, 0, 1.0, 0.90),
    ]  # fmt: skip
    columns = ["layer", "method", "units", "image_products", "seconds", "loss"]
    return pd.DataFrame(rows, columns=columns).assign(seed=0)
