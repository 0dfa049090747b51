"""recorded_plot.py: the table and the figure say what the records say."""

import pandas as pd
import pytest

from snows_core.book.records.real_networks import METHODS
from snows_core.book.records.recorded_plot import draw_records, shown_table


def frame(**changes):
    rows = [
        {"network": "net", "pattern": pattern, "method": method, "images": images, "seed": 0, "accuracy": accuracy}
        | {"agreement": accuracy + 2, "kl": 0.12345, "cosine": 0.91234, "cka": 0.8, "neighbours": 40.0}
        | {"low": accuracy - 3, "high": accuracy + 4, "dense": 87.2, "cpu_seconds": 100.4, "peak_gb": 4.96}
        for pattern, method, images, accuracy in [
            ("2:4", "magnitude", 128, 10.0),
            ("2:4", "standard", 128, 70.0),
            ("2:4", "standard", 500, 75.0),
            ("1:4", "standard", 128, 40.0),
            ("global:0.7:0.95", "quick", 128, 60.0),
        ]
    ]
    table = pd.DataFrame(rows).assign(**changes)
    table["method"] = pd.Categorical(table["method"], list(METHODS), ordered=True)
    return table


def test_the_table_is_rounded_and_has_intervals_in_words():
    shown = shown_table(frame())
    row = shown.loc[("70 %", "quick")]
    assert row["top-1 accuracy (%)"] == 60.0 and row["95 % interval"] == "57.0 to 64.0"
    assert (row["KL (nats)"], row["CPU s"], row["GB"], row["images"]) == (0.123, 100, 5.0, 128)
    features = shown_table(frame(kl=None, accuracy=None))
    assert features["cosine of the features"].iloc[0] == 0.912 and "KL (nats)" not in features


def test_the_figure_has_a_point_a_run_with_its_interval_and_the_run_of_most_images():
    figure = draw_records(frame())
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["2:4", "1:4", "70 %"]
    points = {
        (container.get_label(), round(x)): (y, bars)
        for container in left.containers
        for (x, y), bars in zip(container.lines[0].get_xydata(), container.lines[2][0].get_segments(), strict=True)
    }
    assert {key: y for key, (y, _) in points.items()} == {
        ("magnitude", 0): 10.0,
        ("standard", 0): 75.0,
        ("standard", 1): 40.0,
        ("quick", 2): 60.0,
    }
    assert points["standard", 0][1][:, 1].tolist() == pytest.approx([72.0, 79.0])
    assert [line.get_ydata()[0] for line in left.lines if line.get_label() == "dense"] == [87.2]
    assert right.get_ylabel() == "agreement with dense (%)"
