"""How the project's figures look: one colour-blind-safe theme, and one colour and marker a method in every figure."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from torch import Tensor

from snows_core.errors import bad, closest

_WONG = {  # B. Wong, "Points of view: Color blindness", Nature Methods 8, 441 (2011)
    "black": "#000000", "orange": "#e69f00", "sky": "#56b4e9", "green": "#009e73",
    "yellow": "#f0e442", "blue": "#0072b2", "red": "#d55e00", "purple": "#cc79a7", "grey": "#7f7f7f",
}  # fmt: skip

METHODS: dict[str, dict[str, Any]] = {
    "dense": {"color": _WONG["black"], "marker": "", "linestyle": "--"},
    "magnitude": {"color": _WONG["grey"], "marker": "v", "linestyle": ":"},
    "layer-wise": {"color": _WONG["orange"], "marker": "s", "linestyle": "-."},
    "SNOWS": {"color": _WONG["blue"], "marker": "o", "linestyle": "-"},
    "paper": {"color": _WONG["purple"], "marker": "D", "linestyle": "-"},
    "Gauss-Newton": {"color": _WONG["sky"], "marker": "^", "linestyle": "-"},
    "Fisher": {"color": _WONG["green"], "marker": "P", "linestyle": "--"},
    "Adam": {"color": _WONG["red"], "marker": "X", "linestyle": "-."},
    "published": {"color": _WONG["red"], "marker": "*", "linestyle": ""},
}


def theme() -> None:
    """Set seaborn's theme for every figure that follows: white grid, Wong's colours, readable at 700 pixels."""
    colours = [_WONG[name] for name in ("blue", "orange", "green", "red", "purple", "sky", "black")]
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette=colours,
        rc={
            "figure.figsize": (7.0, 4.2),
            "figure.dpi": 100,
            "savefig.dpi": 120,
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "image.cmap": "cividis",
        },
    )


def style(method: str) -> dict[str, Any]:
    """Return colour, marker and line style of a method, for ``ax.plot(x, y, label=method, **style(method))``.

    Methods differ in marker and line too, so a figure can be read in grey.

    Args:
        method: a key of ``METHODS``.

    Returns:
        Keyword arguments of ``Axes.plot`` and ``Axes.errorbar``.

    Raises:
        SnowsError: on an unknown method.

    >>> style("magnitude")["marker"]
    'v'
    """
    if method not in METHODS:
        raise bad("method", method, f"one of {', '.join(METHODS)}", closest(method, METHODS))
    return dict(METHODS[method])


def labelled(ax: Axes, x: str, y: str, title: str = "", legend: bool = True) -> Axes:
    """Name the axes (with units, as in "accuracy (%)"), give the title, and show the legend where there is one.

    Args:
        ax: the axes.
        x: what runs along, with its unit.
        y: what runs up, with its unit.
        title: what the figure shows, as a sentence.
        legend: whether to show the legend when lines have labels.

    Returns:
        The same axes.
    """
    ax.set(xlabel=x, ylabel=y, title=title)
    if legend and ax.get_legend_handles_labels()[1]:
        ax.legend()
    return ax


def mask_image(mask: Tensor, ax: Axes | None = None, title: str = "", rows: int = 32, columns: int = 64) -> Axes:
    """Draw the corner of a mask as an image: dark where a weight is kept, light where it is pruned.

    Args:
        mask: bool tensor; (out, in) as it is, a convolution's (out, in, h, w) as (out, h * w * in), so that the
            groups of N:M, which run along the input channels, lie side by side.
        ax: axes to draw on; default a new figure.
        title: what it shows.
        rows: at most so many output channels.
        columns: at most so many inputs.

    Returns:
        The axes.
    """
    ax = plt.subplots()[1] if ax is None else ax
    flat = mask.permute(0, 2, 3, 1).flatten(1) if mask.ndim == 4 else mask.flatten(1)
    ax.imshow(flat[:rows, :columns].float().cpu().numpy(), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    ax.grid(False)
    return labelled(ax, "input", "output channel", title, legend=False)
