"""The method in one picture: a layer, the operations behind it, the dense twin, and the errors that go back."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path

from snows_core.errors import invalid_argument

LAYER_WISE, SNOWS, SKIP, INK, QUIET, FADED = "#b35900", "#0072b2", "#009e73", "#222222", "#8c8c8c", "#cccccc"
"""Colours: K = 0 (a darker orange than in plots, for it colours text), the other comparisons, the skip connection,
boxes, remarks, and what fades."""

Point = tuple[float, float]

MASK = ("110100", "011001", "100110", "010011", "101100", "001101")
"""The mask that is drawn: six output rows of six inputs, 1 where a weight is kept."""

TAPS = (2.68, 4.18, 5.68, 7.26)
"""Where the activations are compared: behind the layer (j = 0) and behind each of three operations (j = 1, 2, 3)."""

PRUNED, BETWEEN, DENSE = 3.5, 2.3, 1.1
"""Heights of the network that is pruned, of the comparisons, and of its dense twin."""

BRANCH, SUM, LOSS = 0.92, 6.11, 8.53
"""Where the skip connection leaves, where the block adds it, and where the loss stands."""

HALF = (0.55, 0.64, 0.64, 0.64)
"""Half the width of each term of the loss as it is written."""

WIDTH, BOTTOM, TOP = 9.0, -0.5, 4.98


def method_picture(highlight: int | None = None, width: float = WIDTH) -> Figure:
    r"""Draw the K-step loss of one layer ``l`` for K = 3, in a residual block.

    The upper row is the network with the layer's masked weight, the lower row its dense twin. Double arrows are the
    terms ``c_j ||f_{l:l+j}(X; W) - Y_{l+j}||^2`` of the loss, read from left to right as one sum; gradient and
    products with the Hessian go back from it to ``W``. As everywhere in this package, batch norm belongs to the
    convolution before it, and an addition is computed but neither counted nor compared.

    Args:
        highlight: 0 to 3: K of the segment that stands out, what lies behind it fades; None: nothing fades.
        width: of the figure in inches; text scales with it. It is made to be read at 640 pixels and more.

    Returns:
        The figure, drawn without the plotting library's settings, so that it looks the same everywhere.

    Raises:
        SnowsError: on another ``highlight``, or a width that is not positive.

    >>> [round(float(side), 1) for side in method_picture(highlight=0, width=4.5).get_size_inches()]
    [4.5, 2.7]
    """
    far = len(TAPS) - 1
    if highlight is not None and highlight not in range(len(TAPS)):
        raise invalid_argument("highlight", highlight, f"a whole number from 0 to {far}, or None")
    if not width > 0:
        raise invalid_argument("width", width, "a positive number of inches")
    figure = Figure(figsize=(width, width * (TOP - BOTTOM) / WIDTH))
    figure.set_layout_engine("none")  # one axes in full size; the notebooks' theme would lay out and warn
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(BOTTOM, TOP))
    ax.axis("off")
    pen = _Pen(ax, width / WIDTH, far if highlight is None else highlight)
    _highlight_first(pen)
    _network(pen, PRUNED, up=True)
    _network(pen, DENSE, up=False)
    _images(pen)
    _comparisons(pen)
    _feedback(pen)
    return figure


class _Pen:
    """Draws boxes, lines and words at one scale; what lies behind the K-th operation fades.

    Args:
        ax: the axes, in inches of a picture 9 inches wide.
        scale: of text and lines.
        k: operations that the segment has.
    """

    def __init__(self, ax: Axes, scale: float, k: int) -> None:
        self.ax, self.scale, self.k = ax, scale, k

    def colour(self, j: int, colour: str = INK) -> str:
        """Return the colour of what belongs to the j-th operation: as given up to K, quiet behind it."""
        return colour if j <= self.k else FADED

    def words(self, x: float, y: float, text: str, colour: str = INK, size: float = 12, **more: Any) -> None:
        """Write text, its middle at a point, in fonts that come with the plotting library."""
        look = {"ha": "center", "va": "center", "family": "DejaVu Sans", "math_fontfamily": "cm"} | more
        self.ax.text(x, y, text, color=colour, size=size * self.scale, **look)

    def box(self, x: float, y: float, size: tuple[float, float], colour: str, fill: str = "white") -> None:
        """Draw a box with round corners, its middle at a point."""
        shape = f"round,pad=0,rounding_size={0.08 if min(size) > 0.2 else 0.03}"
        corner = (x - size[0] / 2, y - size[1] / 2)
        line = 1.4 * self.scale
        self.ax.add_patch(FancyBboxPatch(corner, *size, boxstyle=shape, ec=colour, fc=fill, lw=line, zorder=2))

    def arrow(self, *points: Point, colour: str = INK, tip: float = 13, both: bool = False, **more: Any) -> None:
        """Draw a line along corners, which it rounds off, with a tip of that size at its end (0: none), or at both."""
        look: dict[str, Any] = {"linewidth": 1.6 * self.scale, "zorder": 3} | more
        self.ax.add_patch(PathPatch(_rounded(points), color=colour, fill=False, capstyle="butt", **look))
        ends = [(points[-2], points[-1]), *([(points[1], points[0])] if both else [])]
        shape = {"arrowstyle": "-|>", "mutation_scale": tip * self.scale, "color": colour, "linewidth": 0}
        for before, end in ends if tip else []:
            near = _towards(end, before, 0.02)
            self.ax.annotate("", end, near, arrowprops=shape | {"shrinkA": 0, "shrinkB": 0}, zorder=look["zorder"])


def _towards(start: Point, end: Point, distance: float) -> Point:
    """Return the point at a distance from one point to another of the same height, or one above the other."""
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    return start[0] + (end[0] - start[0]) * distance / length, start[1] + (end[1] - start[1]) * distance / length


def _rounded(points: tuple[Point, ...], radius: float = 0.16) -> Path:
    """Return a path along points whose inner corners are rounded."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_towards(corner, before, radius), corner, _towards(corner, after, radius)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _highlight_first(pen: _Pen) -> None:
    """Shade what K = 0 looks at, and say who stops there."""
    pen.ax.add_patch(Rectangle((1.06, 0.3), 2.1, 3.84, fc="#fdebd3", ec="none", zorder=0))
    pen.words(1.06, -0.06, "$K=0$: OBC, SparseGPT, ALPS, ...", LAYER_WISE, 12.5, ha="left")
    pen.words(1.06, -0.33, "stop at the layer's own output", LAYER_WISE, 12, ha="left")
    if pen.k:
        behind = "operation" if pen.k == 1 else "operations"
        pen.words(4.4, -0.06, f"SNOWS with $K={pen.k}$: {pen.k} {behind} more", SNOWS, 12.5, ha="left")
    if pen.k == 3:
        pen.words(4.4, -0.33, "(+ is computed, but neither counted nor compared)", SNOWS, 12, ha="left")


def _network(pen: _Pen, y: float, up: bool) -> None:
    """Draw one row: the layer, the operations behind it, and the skip connection, above the row or below it."""
    side = 1 if up else -1
    if up:
        pen.words(0.5, y, "$X$", size=15)
    pen.arrow((0.68 if up else 0.49, y), (1.16, y), tip=12)
    _layer(pen, y, pruned=up)
    pen.arrow((2.36, y), (3.13, y), tip=12, colour=pen.colour(1))
    for j, (x, name, size) in enumerate(((3.48, "ReLU", 0.66), (4.98, "conv", 0.66), (6.71, "ReLU", 0.62)), start=1):
        pen.box(x, y, (size, 0.56), pen.colour(j), "#f2f6fa")
        pen.words(x, y, name, pen.colour(j))
        if up:
            pen.words(x, y + 0.44, f"$l+{j}$", pen.colour(j, QUIET), 11.5)
    third = pen.colour(3)
    pen.arrow((3.81, y), (4.64, y), tip=12, colour=pen.colour(2))
    pen.arrow((5.31, y), (SUM - 0.17, y), tip=12, colour=third)
    pen.arrow((SUM + 0.17, y), (6.4, y), tip=9, colour=third)
    pen.arrow((7.02, y), (7.7, y), tip=12, colour=pen.colour(3, QUIET))
    pen.words(7.9, y, "$\\cdots$", QUIET, 15)
    pen.ax.add_patch(Circle((SUM, y), 0.17, ec=third, fc="white", lw=1.4 * pen.scale, zorder=4))
    pen.words(SUM, y - 0.01, "+", third, 14, zorder=5)
    height = y + side * 0.76
    skip = pen.colour(3, SKIP)
    way = (BRANCH, y), (BRANCH, height), (SUM, height), (SUM, y + side * 0.18)
    pen.arrow(*way, colour=skip, tip=12, zorder=1)
    pen.ax.plot(BRANCH, y, "o", color=skip, ms=5 * pen.scale, zorder=5)
    words = "skip connection from before the layer" if up else "dense twin: the same, with $W_0$, gives the targets $Y$"
    about = SKIP if pen.k == 3 else QUIET
    pen.words(4.0 if up else 3.9, height, words, about, 11, bbox=_background(), zorder=5)


def _layer(pen: _Pen, y: float, pruned: bool) -> None:
    """Draw layer l with its weight: kept entries dark and removed ones empty, or all of them in the dense twin."""
    pen.box(1.76, y, (1.18, 0.98), LAYER_WISE if pruned else INK, "white")
    cell, left, top = 0.11, 1.27, y + 0.33
    for row, kept in enumerate(MASK):
        for column, bit in enumerate(kept):
            corner = (left + cell * column, top - cell * (row + 1))
            full = bit == "1" or not pruned
            fill = "#3f5f7f" if full else "white"
            pen.ax.add_patch(Rectangle(corner, cell, cell, zorder=3, fc=fill, ec="#9a9a9a", lw=0.6 * pen.scale))
    pen.words(2.15, y, "$W$" if pruned else "$W_0$", size=15)
    if pruned:
        pen.words(2.4, y + 0.44, "layer $l$", LAYER_WISE, 11.5, ha="left")
        pen.words(1.17, y - 0.72, "dark: kept by\nthe mask $Z$", INK, 11, ha="left", linespacing=1.0)


def _images(pen: _Pen) -> None:
    """Draw where both rows have their input from."""
    pen.words(0.08, BETWEEN, "calibration\nimages", size=11.5, ha="left", linespacing=1.1)
    for end, sign, words in ((PRUNED - 0.2, 1, "pruned\nlayers"), (DENSE, -1, "dense\nlayers")):
        way = ((0.5, BETWEEN + sign * 0.27), (0.5, end))
        pen.arrow(*way, linestyle=(0, (2, 1.5)), tip=13 if sign > 0 else 0)
        pen.words(0.56, BETWEEN + sign * 0.62, words, "#6f6f6f", 10.5, ha="left", linespacing=1.0)


def _background() -> dict[str, Any]:
    return {"fc": "white", "ec": "none", "boxstyle": "square,pad=0.15"}


def _comparisons(pen: _Pen) -> None:
    """Draw the terms of the loss as double arrows between the rows, added up from left to right."""
    for j, x in enumerate(TAPS):
        colour = pen.colour(j, SNOWS if j else LAYER_WISE)
        for y in (PRUNED, DENSE):
            pen.ax.plot(x, y, "o", color=colour, ms=6 * pen.scale, zorder=6)
        pen.arrow((x, DENSE + 0.08), (x, PRUNED - 0.08), colour=colour, both=True, tip=15)
        behind = f"+{j}" if j else ""
        text = f"$c_{j}\\,\\Vert f_{{l:l{behind}}}(X;W)$\n$-\\,Y_{{l{behind}}}\\Vert^2$"
        edge = _background() | {"ec": colour, "boxstyle": "round,pad=0.25", "lw": 1.2 * pen.scale}
        pen.words(x, BETWEEN, text, colour, 12, bbox=edge, zorder=7, linespacing=1.25)
        last = j == len(TAPS) - 1
        following = LOSS - 0.36 if last else TAPS[j + 1] - HALF[j + 1]
        sign, shade = ("=", INK) if last else ("+", pen.colour(j + 1))
        pen.words((x + HALF[j] + following) / 2, BETWEEN, sign, shade, 15)


def _feedback(pen: _Pen) -> None:
    """Draw the loss, and the way from it back to the kept weights."""
    pen.box(LOSS, BETWEEN, (0.72, 0.56), INK, "#f2f2f2")
    pen.words(LOSS, BETWEEN, "$L(W)$", size=14, zorder=5)
    way = ((LOSS, BETWEEN + 0.28), (LOSS, 4.68), (1.76, 4.68), (1.76, PRUNED + 0.5))
    pen.ax.plot([1.76] * 2, [PRUNED + 0.55, 4.4], color="white", lw=6 * pen.scale, zorder=3)  # a bridge
    pen.arrow(*way, colour=INK, linewidth=2 * pen.scale, tip=13, zorder=4)
    words = "gradient $g$ and products $Hu$ move the kept weights"
    pen.words(5.1, 4.68, words, INK, 12, bbox=_background(), zorder=6)
