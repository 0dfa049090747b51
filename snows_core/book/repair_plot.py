"""Pruned networks on axes that show small and large differences alike: error, disagreement and KL, one marker a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snows_core.book import plots

REPAIRED = ("magnitude", "layer-wise", "SNOWS")
"""Methods from left to right within a group."""

_STEP = 0.24  # between methods, along the axis of groups
_TICKS = (0, 1, 10, 100)


def draw_repairs(results: pd.DataFrame, dense: Mapping[str, float]) -> Figure:
    """Draw every run of several groups: test error, disagreement with the dense network, and KL; lower is better.

    The first two axes are linear from 0 to 1 % and logarithmic above, so that one image of some hundreds is seen beside
    a network that guesses. Thin lines join runs of one calibration set.

    Args:
        results: one row a run: group, method (of ``REPAIRED``), seed (missing where a method needs no images), accuracy
            and agreement in percent, kl in nats.
        dense: accuracy of the dense network in percent, by group; its order is that of the groups.

    Returns:
        The figure.
    """
    shown = results.assign(error=100 - results["accuracy"], disagreement=100 - results["agreement"])
    words = {
        "error": "test error (%)",
        "disagreement": "disagreement with dense (%)",
        "kl": "KL divergence (nats)",
    }
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.9))
    for ax, (column, text) in zip(axes, words.items(), strict=True):
        _draw_runs(ax, shown, column, list(dense))
        if column == "kl":
            plots.plain_log(ax)
        else:
            ax.set_yscale("symlog", linthresh=1, linscale=0.6)
            ax.set_yticks(_TICKS, [str(tick) for tick in _TICKS])
            ax.set_ylim(-0.15, 130)
        if column == "error":
            for place, accuracy in enumerate(dense.values()):
                label = "dense" if place == 0 else None
                ax.hlines(100 - accuracy, place - 0.4, place + 0.4, color="black", linestyle="--", label=label)
        plots.labelled(ax, "", text, legend=False)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside lower center")
    return figure


def _draw_runs(ax: Axes, shown: pd.DataFrame, column: str, groups: Sequence[str]) -> None:
    for number, method in enumerate(REPAIRED):
        part = shown[shown["method"] == method]
        x = part["group"].map(groups.index) + _STEP * (number - 1)
        look = plots.style(method) | {"linestyle": "", "alpha": 0.8}
        ax.plot(x, part[column], label=method, **look, zorder=3)
    fitted = shown[shown["method"].isin(REPAIRED[1:])].dropna(subset="seed")
    for (group, _), pair in fitted.groupby(["group", "seed"]):
        values = pair.set_index("method")[column].reindex(list(REPAIRED[1:])).dropna()
        if len(values) == 2:
            place = groups.index(str(group))
            ax.plot([place, place + _STEP], values, color="#7f7f7f", linewidth=0.8, zorder=2)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.grid(False, axis="x")
