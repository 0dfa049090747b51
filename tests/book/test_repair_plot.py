"""repair_plot.py: every run is a marker, pairs of a calibration set are joined, and perfect agreement has a place."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from snows_core.book.repair_plot import draw_repairs


def test_all_runs_are_drawn_and_those_of_one_calibration_set_joined():
    rows = [
        {
            "group": group,
            "method": method,
            "seed": seed,
            "accuracy": 99 - step,
            "agreement": 100 - step,
            "kl": 0.01 + step,
        }
        for group in ("2:4", "1:4")
        for method, seeds, step in (("magnitude", [np.nan], 40), ("layer-wise", [0, 1], 1), ("SNOWS", [0, 1], 0))
        for seed in seeds
    ]
    figure = draw_repairs(pd.DataFrame(rows), {"2:4": 99.0, "1:4": 99.0})
    error, disagreement, kl = figure.axes
    markers = {line.get_label(): line for line in disagreement.lines if not line.get_label().startswith("_")}
    assert set(markers) == {"magnitude", "layer-wise", "SNOWS"}
    assert list(markers["SNOWS"].get_ydata()) == [0, 0, 0, 0] and len(markers["magnitude"].get_ydata()) == 2
    joined = [line for line in disagreement.lines if line.get_label().startswith("_")]
    assert len(joined) == 4 and all(list(line.get_ydata()) == [1, 0] for line in joined)
    assert disagreement.get_ylim()[0] < 0  # a network that always agrees is on the axes
    assert [error.get_yscale(), kl.get_yscale()] == ["symlog", "log"]
    plt.close(figure)
