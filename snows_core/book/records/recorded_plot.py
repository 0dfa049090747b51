"""How recorded runs of real networks are shown: one table, one figure, for the notebooks and the README."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snows_core.book import plots
from snows_core.book.records.real_networks import METHODS

CLASSES = {"accuracy": "top-1 accuracy (%)", "agreement": "agreement with dense (%)"}
"""What is drawn of networks that classify, by column of ``read_records``."""

FEATURES = {"cosine": "cosine of the features", "cka": "linear CKA", "neighbours": "same nearest neighbour (%)"}
"""What is drawn of networks that give features."""

WITH_INTERVAL = ("accuracy", "neighbours")  # the columns that low and high belong to
STEP = 0.18  # between methods, along the axis of patterns


def shown_pattern(pattern: str) -> str:
    """Return a pattern as readers know it.

    >>> shown_pattern("global:0.7:0.95"), shown_pattern("2:4"), shown_pattern("global:0.7405:0.95 without *dw")
    ('70 %', '2:4', '74 %, *dw dense')
    """
    pattern, _, left = pattern.partition(" without ")
    shown = f"{100 * float(pattern.split(':')[1]):.0f} %" if pattern.startswith("global:") else pattern
    return f"{shown}, {left} dense" if left else shown


def columns_of(frame: pd.DataFrame) -> Mapping[str, str]:
    """Return what is shown of a network: ``FEATURES`` of one without classes, else ``CLASSES``.

    Args:
        frame: of ``read_records``, one network.
    """
    return CLASSES if frame["accuracy"].notna().all() else FEATURES


def shown_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return recorded runs as a table to read: rounded, with intervals in words.

    Args:
        frame: of ``read_records``, one network.

    Returns:
        One row a run, by pattern and method.
    """
    columns = columns_of(frame)
    shown = pd.DataFrame({"pattern": frame["pattern"].map(shown_pattern), "method": frame["method"].astype(str)})
    shown["images"] = frame["images"]
    for name, words in columns.items():
        shown[words] = frame[name].round(1 if "%" in words else 3)
        if name in WITH_INTERVAL:
            shown["95 % interval"] = [
                f"{low:.1f} to {high:.1f}" for low, high in zip(frame["low"], frame["high"], strict=True)
            ]
    if frame["kl"].notna().all():
        shown["KL (nats)"] = frame["kl"].round(3)
    shown["CPU s"], shown["GB"] = frame["cpu_seconds"].round().astype("Int64"), frame["peak_gb"].round(1)
    return shown.set_index(["pattern", "method"])


def draw_records(frame: pd.DataFrame) -> Figure:
    """Draw recorded runs: a panel a column, patterns along, one marker a method, intervals where there are.

    Args:
        frame: of ``read_records``, one network; of several runs of a pattern and method that with most images.

    Returns:
        The figure.
    """
    columns = columns_of(frame)
    best = frame.sort_values("images").groupby(["pattern", "method"], observed=True).last().reset_index()
    patterns = sorted(best["pattern"].unique(), key=lambda name: (" without " in name, name.startswith("global"), name))
    if "1:4" in patterns:  # the harder one behind the easier
        patterns.remove("1:4")
        patterns.insert(patterns.index("2:4") + 1 if "2:4" in patterns else 0, "1:4")
    figure, axes = plt.subplots(1, len(columns), figsize=(min(4.4 * len(columns), 9.6), 3.8), squeeze=False)
    for ax, (name, words) in zip(axes[0], columns.items(), strict=True):
        for number, method in enumerate(METHODS):
            rows = best[best["method"] == method].set_index("pattern")
            there = [pattern for pattern in patterns if pattern in rows.index]
            x = [patterns.index(pattern) + STEP * (number - (len(METHODS) - 1) / 2) for pattern in there]
            y = rows.loc[there, name].astype(float)
            bars = rows.loc[there, ["low", "high"]].T.to_numpy(float) if name in WITH_INTERVAL else None
            reach = None if bars is None else np.abs(bars - y.to_numpy())
            look = plots.style("SNOWS" if method == "standard" else method) | {"linestyle": ""}
            ax.errorbar(x, y, yerr=reach, capsize=2, label=method, **look)
        if name == "accuracy":
            ax.axhline(best["dense"].iloc[0], **plots.style("dense"), linewidth=1, label="dense")
        ax.set_xticks(range(len(patterns)), [shown_pattern(pattern).replace(", ", ",\n") for pattern in patterns])
        ax.set_xlim(-0.5, len(patterns) - 0.5)
        ax.grid(False, axis="x")
        along = "pattern (N:M, or share removed)" if len(columns) < 3 else "pattern, or share removed"
        plots.labelled(ax, along, words, legend=False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), ncols=len(METHODS) + 1, loc="outside lower center")
    return figure
