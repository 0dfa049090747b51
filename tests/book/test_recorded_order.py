"""recorded_order.py: methods are ordered only where their intervals are apart."""

import pandas as pd

from snows_core.book.records.recorded_order import order_by_interval


def test_overlapping_intervals_are_not_ordered():
    rows = [
        ("2:4", "magnitude", 0.0, 1.0),
        ("2:4", "quick", 62.0, 70.0),
        ("2:4", "layer-wise", 53.0, 61.0),
        ("global:0.5:0.95", "layer-wise", 72.5, 79.9),
        ("global:0.5:0.95", "quick", 72.7, 80.1),
    ]
    frame = pd.DataFrame(rows, columns=["pattern", "method", "low", "high"])
    assert order_by_interval(frame) == {"2:4": "magnitude < layer-wise < quick", "50 %": "layer-wise ~ quick"}
