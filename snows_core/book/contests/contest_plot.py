"""How the race of minimisers is drawn: as steps, because a minimiser has nothing to show before its step is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snows_core.book import plots
from snows_core.book.contests.contest import LOOKS, NEWTON, NO_CURVATURE

BANDS = (NEWTON, NO_CURVATURE)  # arms whose quartiles are drawn; bands of all would hide one another


def draw_curves(sides: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the share of the attainable decrease against units, a panel a profile, medians as steps.

    Args:
        sides: tables of :func:`snows_core.book.contests.contest.curves` by title.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(1, len(sides), figsize=(9.4, 4.4), sharey=True, squeeze=False)
    for ax, (title, table) in zip(axes[0], sides.items(), strict=True):
        for method, look in LOOKS.items():
            part, style = table[table["method"] == method], plots.style(look) | {"marker": ""}
            ax.step(part["units"], part["median"], where="post", label=method, **style)
            if method in BANDS:
                ax.fill_between(
                    part["units"], part["low"], part["high"], step="post", color=style["color"], alpha=0.13, linewidth=0
                )
        ax.set(ylim=(0, 103), xlim=(0, table["units"].max()))
        plots.labelled(ax, "units (forward-backward passes)", "", title, legend=False)
    axes[0][0].set_ylabel("attainable decrease reached (%)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def draw_units(sides: Mapping[str, pd.DataFrame], budgets: Mapping[str, float]) -> Figure:
    """Draw the units that Newton-CG and the preconditioned gradient need for nine tenths, layer by layer.

    Args:
        sides: tables of :func:`snows_core.book.contests.contest.layer_table` by title.
        budgets: of each side, in units; fits that never got there are drawn above a line at the budget.

    Returns:
        The figure: one point a seed, joined by its layer's median.
    """
    figure, axes = plt.subplots(1, len(sides), figsize=(9.4, 3.9), sharey=True, squeeze=False)
    never = max(budgets.values()) + 1.5
    for ax, (title, table) in zip(axes[0], sides.items(), strict=True):
        names = list(dict.fromkeys(table["layer"]))
        for method, shift in ((NEWTON, -0.15), (NO_CURVATURE, 0.15)):
            part = table[table["method"] == method].assign(units_90=lambda t: t["units_90"].fillna(never))
            look = plots.style(LOOKS[method]) | {"marker": "o" if method == NEWTON else "x"}
            place = part["layer"].map(names.index) + shift
            ax.plot(place, part["units_90"], **look | {"linestyle": "", "markersize": 5, "alpha": 0.55})
            middle = part.groupby("layer", sort=False)["units_90"].median()
            ax.plot(np.arange(len(middle)) + shift, middle, label=method, **look | {"marker": "", "linewidth": 1.4})
        ax.axhline(budgets[title] + 0.5, color="grey", linewidth=1, linestyle=":")
        ax.set_xticks(range(len(names)), [name.removeprefix("layer") for name in names], rotation=90, fontsize=8)
        ax.set_ylim(0, never + 1)
        plots.labelled(ax, "layer, front to back", "", title, legend=False)
    axes[0][0].set_ylabel("units until nine tenths")
    ticks = np.arange(0, min(budgets.values()) - 1, 4)
    axes[0][0].set_yticks([*ticks, never], [*(f"{tick:g}" for tick in ticks), "not\nreached"])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def draw_layers(points: pd.DataFrame, methods: Sequence[str], columns: int = 3) -> Figure:
    """Draw the lowest loss so far against units, a panel a layer.

    Args:
        points: of :func:`snows_core.book.contests.contest.race`, one seed.
        methods: the arms that are drawn.
        columns: panels in a row.

    Returns:
        The figure.
    """
    names = list(dict.fromkeys(points["layer"]))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(8.2, 1.25 * rows + 1.1), sharex=True, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        _steps(ax, points[points["layer"] == name], methods)
        ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.yaxis.set_major_locator(MaxNLocator(3))
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("units", fontsize=10)
    figure.supylabel("lowest loss so far (start = 1)", fontsize=10)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(methods))
    return figure


def _steps(ax: Axes, points: pd.DataFrame, methods: Sequence[str]) -> None:
    end = points["units"].max()
    for method in methods:
        part = points[points["method"] == method]
        best = np.minimum.accumulate(part["loss"].to_numpy())
        units, losses = [*part["units"], end], [*best, best[-1]]
        style = plots.style(LOOKS[method]) | {"marker": "", "linewidth": 1.3}
        ax.step(units, losses, where="post", label=method, **style)
