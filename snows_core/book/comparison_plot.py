"""How a comparison is drawn: a row of panels a pattern, masks along, one marker an update, ties hollow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snows_core.book import plots

WORDS = {
    "accuracy": "top-1 accuracy (%)",
    "agreement": "agreement with dense (%)",
    "cosine": "cosine of the features",
    "kl": "KL (nats)",
}
"""What is drawn, by column of a comparison's table: the first of the first three that there is, and KL."""

LOOKS = {"none": "magnitude", "layerwise": "layer-wise", "snows": "SNOWS", "own": "paper", "adaprune": "Adam"}
OTHERS = ("Fisher", "Gauss-Newton", "published")  # looks of updates that have none of their own
STEP = 0.12  # between updates, along the axis of masks
WIDE = 20.0  # a range of KL beyond which its axis is logarithmic


def draw_comparison(table: pd.DataFrame, dense: float | None = None) -> Figure:
    """Draw the cells that are done.

    A hollow marker is a tie with the best cell of its pattern, which is filled, as is what is worse. Bars are the
    paired intervals of 95 % of the difference to the best, so that the best itself has none.

    Args:
        table: of a :class:`~snows_core.comparison.Comparison`.
        dense: accuracy of the dense network in percent, drawn as a line where there is one.

    Returns:
        The figure, which no window shows.
    """
    first = next((name for name in ("accuracy", "agreement", "cosine") if name in table), "")
    shown = [name for name in (first, "kl") if name and name in table]
    patterns = list(dict.fromkeys(table["pattern"]))
    with matplotlib.rc_context():
        plots.theme()
        figure = Figure(figsize=(4.6 * max(1, len(shown)), 3.4 * len(patterns) + 0.4), layout="constrained")
        axes = figure.subplots(len(patterns), max(1, len(shown)), squeeze=False)
        for row, pattern in zip(axes, patterns, strict=True):
            part = table[table["pattern"] == pattern]
            for ax, name in zip(row, shown, strict=False):
                _draw(ax, part, name, "kl_" if name == "kl" else "")
                if name == "accuracy" and dense is not None:
                    ax.axhline(dense, **plots.style("dense"), linewidth=1, label="dense")
                plots.labelled(ax, "mask", WORDS[name], pattern, legend=False)
        handles, labels = axes[0][0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, ncols=len(labels), loc="outside lower center")
    return figure


def save_comparison(table: pd.DataFrame, dense: float | None, path: Path) -> None:
    """Draw a comparison into a PNG file that is the same whenever the numbers are."""
    draw_comparison(table, dense).savefig(path, metadata={"Software": None})


def _draw(ax: Axes, part: pd.DataFrame, name: str, prefix: str) -> None:
    masks, updates = (list(dict.fromkeys(part[side])) for side in ("mask", "update"))
    for number, update in enumerate(updates):
        look = _look(update, updates) | {"linestyle": ""}
        cells = part[(part["update"] == update) & (part["status"] == "done")]
        x = [masks.index(mask) + STEP * (number - (len(updates) - 1) / 2) for mask in cells["mask"]]
        reach = cells[f"{prefix}interval"].astype(float)
        ax.errorbar(x, cells[name].astype(float), yerr=reach, capsize=2, label=update, **look)
        tied = cells[f"{prefix}tie"].fillna(False).astype(bool)
        ties = [place for place, tie in zip(x, tied, strict=True) if tie]
        hollow = {"markerfacecolor": "white", "markeredgecolor": look["color"], "markeredgewidth": 1.5, "zorder": 5}
        ax.plot(ties, cells[name].astype(float)[tied], **look, **hollow)
    ax.set_xticks(range(len(masks)), masks, rotation=20)
    ax.set_xlim(-0.5, len(masks) - 0.5)
    positive = part[name].dropna()
    if name == "kl" and len(positive) and positive.min() > 0 and positive.max() > WIDE * positive.min():
        plots.plain_log(ax)


def _look(update: str, updates: list[str]) -> dict[str, Any]:
    others = [name for name in updates if name not in LOOKS]
    return plots.style(LOOKS[update] if update in LOOKS else OTHERS[others.index(update) % len(OTHERS)])
