"""Recorded comparisons of masks and updates: what `snows compare` left, a folder each, read, counted and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snows_core.book import plots
from snows_core.book.comparison_plot import LOOKS
from snows_core.book.published import published_resnet20

UPDATES = ("none", "layerwise", "own", "snows")
"""Updates in the order in which they are shown."""

STAGED = "stages"  # the folder of a comparison in stages
_PUBLISHED = {"magnitude": "magnitude", "woodfisher": "WoodFisher", "cbs": "CBS", "chita": "CHITA"}
_COLUMNS = ("grid", "pattern", "mask", "update", "accuracy", "agreement", "kl", "kl_tie", "mask_seconds", "seconds")


def read_grids(folder: Path) -> pd.DataFrame:
    """Return the cells of all comparisons in a folder that are done.

    Args:
        folder: with one folder a comparison; need not exist.

    Returns:
        Columns grid (name of the folder) and, of :class:`snows_core.comparison.Comparison`, pattern, mask, update,
        accuracy, agreement, kl, kl_tie, mask_seconds and seconds.
    """
    frames = [
        pd.read_csv(file, dtype={"pattern": str}).assign(grid=file.parent.name).query("status == 'done'")
        for file in sorted(folder.glob("*/results.csv"))
    ]
    cells: pd.DataFrame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(_COLUMNS))
    return cells[[name for name in _COLUMNS if name in cells]]


def is_recorded(folder: Path) -> bool:
    """Tell whether the comparison in a folder, if there is one, has come to its end, and need not be run again."""
    file = folder / "results.csv"
    return file.is_file() and bool(pd.read_csv(file)["status"].isin(["done", "not applicable"]).all())


def by_update(cells: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return one figure with a row for each grid, pattern and mask, and the updates side by side.

    Args:
        cells: of :func:`read_grids`.
        value: name of the figure, as "kl".
    """
    there = [update for update in UPDATES if update in set(cells["update"])]
    wide = cells.pivot(index=["grid", "pattern", "mask"], columns="update", values=value)
    return wide.reindex(columns=there)


def count_improved(cells: pd.DataFrame) -> tuple[int, int]:
    """Count how often SNOWS ends nearer to the dense network than another update on the same mask, by KL.

    Args:
        cells: of :func:`read_grids`.

    Returns:
        How often it does, and of how many pairs.
    """
    kl = by_update(cells, "kl").dropna(subset=["snows"])
    others = [update for update in kl if update != "snows"]
    pairs = kl[others].notna().sum().sum()
    return int(kl[others].gt(kl["snows"], axis=0).sum().sum()), int(pairs)


def published_accuracy(grid: str, pattern: str, mask: str) -> float | None:
    """Return what others published for a method on ResNet-20 / CIFAR-10, or None.

    Args:
        grid: name of the comparison; only global patterns, and there only "stages" beside others, have numbers.
        pattern: as "global:0.8".
        mask: name of the method.

    >>> published_accuracy("global", "global:0.8", "woodfisher"), published_accuracy("uniform", "0.8", "magnitude")
    (62.63, None)
    """
    if not pattern.startswith("global:"):
        return None
    name = _PUBLISHED.get(mask) if grid != STAGED else {"chita": "CHITA++ (multi-stage)"}.get(mask)
    table = published_resnet20()
    return None if name is None else float(dict(table[name])[float(pattern.split(":")[1])])


def draw_updates(ax: Axes, kl: pd.DataFrame, title: str) -> Axes:
    """Draw the KL of every update, one row a mask, with an arrow from least squares to SNOWS.

    Args:
        ax: the axes.
        kl: by mask (index) and update (columns "none", "layerwise", "snows", and perhaps "own"), nats.
        title: of the axes.

    Returns:
        The axes, without a legend.
    """
    head = {"arrowstyle": "-|>", "color": plots.style("SNOWS")["color"], "linewidth": 1.5, "shrinkA": 4, "shrinkB": 4}
    for place, (_, row) in enumerate(kl.iterrows()):
        ax.annotate("", (row["layerwise"], place), (row["none"], place), arrowprops={"arrowstyle": "-", "color": "0.8"})
        ax.annotate("", (row["snows"], place), (row["layerwise"], place), arrowprops=head)
    for update in (name for name in UPDATES if name in kl):
        ax.plot(kl[update], range(len(kl)), label=update, **plots.style(LOOKS[update]) | {"linestyle": ""})
    ax.set_xscale("log")
    ax.set_yticks(range(len(kl)), kl.index)
    return plots.labelled(ax, "KL to the dense network (nats)", "", title, legend=False)


def draw_grids(cells: pd.DataFrame, panels: Sequence[tuple[str, str]]) -> Figure:
    """Draw some patterns of recorded comparisons beside one another.

    Args:
        cells: of :func:`read_grids`.
        panels: grid and pattern of each panel.

    Returns:
        The figure.
    """
    wide = by_update(cells, "kl").reset_index()
    parts = [
        wide.query("grid == @grid and pattern == @pattern").set_index("mask").sort_values("snows", ascending=False)
        for grid, pattern in panels
    ]
    rows = -(-len(parts) // 2)
    height = 0.22 * max(len(part) for part in parts) + 1.0
    figure, axes = plt.subplots(rows, 2, figsize=(9.0, rows * height + 0.5), squeeze=False)
    for ax, part, (grid, pattern) in zip(axes.flat, parts, panels, strict=False):
        draw_updates(ax, part, f"{pattern}, {grid}" if grid == STAGED else pattern)
    for ax in list(axes.flat)[len(parts) :]:
        ax.set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), ncols=len(UPDATES), loc="outside lower center")
    return figure
