"""The family tree of the methods, drawn from what each says of itself: when, what it looks at, and what it gives."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snows_core.book import plots

BRANCHES: dict[str, tuple[str, ...]] = {
    "the network's loss": ("gradient", "fisher", "loss", "logit", "images", "label"),
    "the operations behind": ("operations behind",),
    "the layer's input": ("gram", "input"),
    "the weights alone": ("nothing",),
}
"""Branch, from the top of the drawing down, to words of which a method's ``needs`` has one."""

ORDER = ("the operations behind", "the network's loss", "the layer's input", "the weights alone")
"""The branches in the order in which words are looked for: whoever looks behind the layer reads its input, too."""

OTHERS = "something else"
"""The branch of methods whose ``needs`` has none of the words, drawn last where there are such."""

LOOKS = {"mask": ("magnitude", "mask alone"), "weights": ("layer-wise", "weights alone"), "": ("SNOWS", "both")}
"""What a method gives to the style it is drawn in, and to the words of the legend; "" for both, or anything more."""

NAMES = {
    "adaprune": "AdaPrune", "alps": "ALPS", "cap": "CAP", "cbs": "CBS", "chita": "CHITA", "dimap": "DIMAP",
    "eigendamage": "EigenDamage", "falcon": "FALCON", "layerwise": "least squares", "magnitude": "magnitude",
    "mfac": "M-FAC", "nettrim": "Net-Trim", "obc": "OBC", "obd": "OBD", "obs": "L-OBS", "osscar": "OSSCAR",
    "snows": "SNOWS", "sparsegpt": "SparseGPT", "swaps": "swaps", "upvit": "UP-ViT", "wanda": "Wanda",
    "woodfisher": "WoodFisher",
}  # fmt: skip
"""A method's name in the table to that of its paper; others are written as they are in the table."""

VARIANT, NO_METHOD = "snows-", "none"
"""What the names of variants of SNOWS begin with, which have no paper of their own; what leaves all weights alone."""

STEP, MARGIN = 0.4, 0.66  # between methods of one year and branch, and between branches, in inches
WIDTH = 9.0  # of the figure, in inches: its letters are readable where it is shown 640 pixels wide


def looks_at(needs: str) -> str:
    """Return the branch of a method by what it needs.

    Args:
        needs: of its :class:`~snows_core.methods.Origin`.

    Returns:
        A key of ``BRANCHES``, or ``OTHERS``.

    >>> looks_at("the Gram matrix, and the K operations behind the layer"), looks_at("a crystal ball")
    ('the operations behind', 'something else')
    """
    said = needs.lower()
    return next((branch for branch in ORDER if any(word in said for word in BRANCHES[branch])), OTHERS)


def family_tree(table: pd.DataFrame) -> Figure:
    """Draw methods by year along, and by what they look at up; colour and marker say what they give.

    The years that occur stand at equal distances, with a break where one or more lie between: the methods of a few
    years would else stand on one another, thirty years after the first. Methods of one year and branch are
    stacked in the order of their names. Variants of SNOWS are named in grey under it: the years in the table are
    those of the solvers that they borrow. ``none`` is left out, since it is no method.

    Args:
        table: of :func:`snows_core.methods.methods`, or a part: year, needs and gives by name.

    Returns:
        The figure.
    """
    variants = [str(name).removeprefix(VARIANT) for name in table.index if str(name).startswith(VARIANT)]
    table = table[[name != NO_METHOD and not str(name).startswith(VARIANT) for name in table.index]]
    branch = table["needs"].map(looks_at)
    there = [name for name in (*BRANCHES, OTHERS) if (branch == name).any()]
    years = sorted(set(table["year"].astype(int)))
    most = {name: int(table["year"][branch == name].value_counts().max()) for name in there}
    heights = {name: STEP * (most[name] - 1) + MARGIN for name in there}
    top, bases = sum(heights.values()), {}
    for name in there:
        top -= heights[name]
        bases[name] = top + MARGIN / 2
    figure = Figure(figsize=(WIDTH, sum(heights.values()) + 0.9), layout="constrained")
    ax = figure.subplots()
    ends = [bases[name] for name in there]
    ax.plot([-0.6, -0.6], [min(ends), max(ends)], color="0.6", linewidth=3, solid_capstyle="round")  # the trunk
    for name in there:
        last = years.index(int(table["year"][branch == name].max()))
        ax.plot([-0.6, last], [bases[name]] * 2, color="0.8", linewidth=2, zorder=0)
        _leaves(ax, table[branch == name], years, bases[name])
    if variants and "snows" in table.index:
        at = years.index(int(table["year"]["snows"])), bases[branch["snows"]]
        look = {"color": "0.4", "ha": "right", "va": "top", "gid": "variants"}
        ax.annotate(f"variants of it: {', '.join(sorted(variants))}", at, (-26, -6), textcoords="offset points", **look)
    for place, (before, after) in enumerate(itertools.pairwise(years)):
        if after - before > 1:
            ax.axvline(place + 0.5, color="0.85", linewidth=1, linestyle=(0, (2, 3)), zorder=-1)
    ax.set_xticks(range(len(years)), [str(year) for year in years])
    ax.set_yticks(ends, ["\n".join(name.rsplit(" ", 1)) for name in there])
    ax.set(xlim=(-0.7, len(years) - 0.5), ylim=(0, sum(heights.values())))
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    shown = list(dict.fromkeys(_look(gives) for gives in table["gives"]))
    handles = [ax.plot([], [], label=words, **_marker(style))[0] for style, words in LOOKS.values() if style in shown]
    figure.legend(handles=handles, title="gives", ncols=len(handles), loc="outside lower center")
    plots.labelled(ax, "year of the paper (dotted: years without one left out)", "looks at", legend=False)
    return figure


def _leaves(ax: Axes, part: pd.DataFrame, years: list[int], base: float) -> None:
    """Draw the methods of a branch, whose line lies at ``base``."""
    for year, methods in part.sort_index().groupby("year"):
        place = years.index(int(str(year)))
        if len(methods) > 1:
            ax.plot([place] * 2, [base, base + STEP * (len(methods) - 1)], color="0.8", linewidth=2, zorder=0)
        for number, (name, gives) in enumerate(methods["gives"].items()):
            at = place, base + STEP * number
            ax.plot(*at, **_marker(_look(gives)))
            below = number == 0 and place % 2  # names of neighbours would else run into one another
            rise, side = (-6, "top") if below else (6, "bottom")
            words = NAMES.get(str(name), str(name))
            ax.annotate(words, at, (0, rise), textcoords="offset points", ha="center", va=side)


def _look(gives: str) -> str:
    return LOOKS.get(gives, LOOKS[""])[0]


def _marker(style: str) -> dict[str, Any]:
    return plots.style(style) | {"linestyle": "", "markersize": 8}
