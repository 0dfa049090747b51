"""How the project's figures look: one colour-blind-safe theme, and one colour and marker a method in every figure."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from snows_core.errors import closest, invalid_argument

_WONG = {  # B. Wong, "Points of view: Color blindness", Nature Methods 8, 441 (2011)
    "black": "#000000",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "green": "#009e73",
    "yellow": "#f0e442",
    "blue": "#0072b2",
    "red": "#d55e00",
    "purple": "#cc79a7",
    "grey": "#7f7f7f",
}

METHODS: dict[str, dict[str, Any]] = {
    "dense": {"color": _WONG["black"], "marker": "", "linestyle": "--"},
    "magnitude": {"color": _WONG["grey"], "marker": "v", "linestyle": ":"},
    "layer-wise": {"color": _WONG["orange"], "marker": "s", "linestyle": "-."},
    "SNOWS": {"color": _WONG["blue"], "marker": "o", "linestyle": "-"},
    "quick": {"color": _WONG["sky"], "marker": "^", "linestyle": "--"},  # SNOWS with less effort than usual
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
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        plt.switch_backend(plt.get_backend())  # loads it now: it sets its own converter, at once or after this cell
        _show_small()
        shell.events.register("pre_run_cell", _show_small)


def _show_small(*_: object) -> None:
    """Make a notebook show figures by :func:`png`."""
    sys.modules["IPython"].get_ipython().display_formatter.formatters["image/png"].for_type(Figure, png)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG of at most 256 colours: a quarter of the bytes, and no difference that one could see."""
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=figure.dpi)
    colours = Image.open(whole).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours.save(small, format="PNG", optimize=True)
    return small.getvalue()


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
        raise invalid_argument("method", method, f"one of {', '.join(METHODS)}", closest(method, METHODS))
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


def mean_and_spread(mean: float, deviation: float, digits: int) -> str:
    """Write a mean with its standard deviation, and alone where one calibration set gives none.

    Args:
        mean: the mean.
        deviation: its standard deviation between sets; NaN, as pandas gives it, for a single set.
        digits: behind the point.

    Returns:
        The text.

    >>> mean_and_spread(98.512, 0.26, 1), mean_and_spread(98.512, float("nan"), 1)
    ('98.5 ± 0.3', '98.5')
    """
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


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


def contours(
    ax: Axes,
    function: Callable[[Tensor, Tensor], Tensor],
    x: tuple[float, float],
    y: tuple[float, float],
    levels: int = 14,
) -> Axes:
    """Draw level lines of a function of two numbers, darker where it is lower.

    Levels rise as squares, so that those of a quadratic are evenly spaced ellipses.

    Args:
        ax: axes to draw on.
        function: maps two tensors of one shape to a tensor of that shape.
        x: from where to where the first number runs.
        y: likewise the second.
        levels: how many lines.

    Returns:
        The axes.
    """
    across, up = torch.meshgrid(torch.linspace(*x, 121), torch.linspace(*y, 121), indexing="xy")
    values = function(across, up).cpu().numpy()
    rise = torch.linspace(0, 1, levels + 1)[1:].square().numpy()
    heights = values.min() + rise * (values.max() - values.min())
    ax.contour(across.numpy(), up.numpy(), values, levels=heights, cmap="cividis", linewidths=0.9)
    ax.grid(False)
    return ax


def step_arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], label: str, colour: str) -> None:
    """Draw a step from one point to another, named in the legend.

    Args:
        ax: axes to draw on.
        start: where the step begins.
        end: where it ends; marked by a dot.
        label: what the legend says.
        colour: any colour of Matplotlib, for instance "C1".
    """
    shape = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 3}
    ax.annotate("", xy=end, xytext=start, arrowprops=shape)
    ax.plot(*end, "o", color=colour, label=label)


def pixel_row(images: list[Tensor], titles: list[str], label: str) -> Figure:
    """Draw small signed images in a row on one diverging scale of 15 steps, white around zero.

    Args:
        images: tensors (height, width).
        titles: one each.
        label: what the colour means, for the colour bar.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(1, len(images), figsize=(1.9 * len(images) + 1, 2.4), squeeze=False)
    limit = max(float(image.abs().max()) for image in images) or 1.0
    for ax, image, title in zip(axes[0], images, titles, strict=True):
        shown = ax.imshow(image.cpu().numpy(), cmap=plt.get_cmap("PuOr", 15), vmin=-limit, vmax=limit)
        ax.set(xticks=[], yticks=[], title=title)
        ax.grid(False)
    figure.colorbar(shown, ax=axes[0], label=label, shrink=0.8)
    return figure


def image_row(images: Tensor, mean: Sequence[float], std: Sequence[float], titles: Sequence[str]) -> Figure:
    """Draw normalised images side by side as people see them, each under its title.

    Args:
        images: (N, C, H, W), normalised as the network takes them; one channel is drawn in grey.
        mean: what was subtracted from the pixels in [0, 1], one value a channel.
        std: what they were divided by.
        titles: one each.

    Returns:
        The figure.
    """
    scale = [torch.tensor(values).view(-1, 1, 1) for values in (std, mean)]
    pixels = (images.cpu() * scale[0] + scale[1]).clamp(0, 1).permute(0, 2, 3, 1)
    figure, axes = plt.subplots(1, len(pixels), figsize=(1.1 * len(pixels), 1.5), squeeze=False)
    for ax, image, title in zip(axes[0], pixels, titles, strict=True):
        ax.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=title)
        ax.grid(False)
    return figure


def plain_log(ax: Axes) -> Axes:
    """Make the vertical axis logarithmic, with plain numbers (0.5, 1, 2) where few powers of ten fit.

    Args:
        ax: the axes, drawn already.

    Returns:
        The same axes.
    """
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    subs = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    return ax
