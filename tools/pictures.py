"""Draw the picture of the method into figures/, for pages that run no code.

    python tools/pictures.py          draw it where the file is not fresh
    python tools/pictures.py --check  only say whether the committed file is what the code draws (exit code 1 if not)

The file holds a digest of all that is drawn (words, places, shapes, colours), which no version of the plotting library
changes; its pixels are compared roughly, since letters differ by a little from version to version.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from snows_core.book import method_picture
from snows_core.files import write_whole

METHOD = Path(__file__).resolve().parent.parent / "figures" / "method.png"
RESOLUTION = 150
"""Dots an inch: twice as many as a page of 640 pixels shows."""

DIFFERENCE = 2.5
"""Mean difference of two pictures, of 255, up to which they are the same: a shift by half a pixel makes 2.3, the
palette of the file 0.5, and no picture at all 20."""

DRAWING = "Drawing"
"""Under which name the file holds the digest."""


def digest(figure: Figure) -> str:
    """Return a digest of what a figure of one pair of axes shows: words, places, shapes and colours."""
    lines = []
    axes = figure.axes[0]
    for item in (*axes.texts, *axes.lines, *axes.patches):  # not its frame, which a theme colours and nobody sees
        if isinstance(item, Text):
            lines.append(
                f"{item.get_text()} {item.get_position()} {item.get_fontsize():.2f} {to_hex(item.get_color())}"
            )
        elif isinstance(item, Line2D):
            lines.append(f"{np.round(item.get_xydata(), 3).tolist()} {to_hex(item.get_color())}")
        elif isinstance(item, Patch):
            corners = np.round(item.get_path().vertices, 3).tolist()
            lines.append(f"{corners} {[to_hex(c, True) for c in (item.get_facecolor(), item.get_edgecolor())]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def rendered(figure: Figure) -> Image.Image:
    """Return a figure as pixels."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=RESOLUTION)
    return Image.open(whole).convert("RGB")


def difference(first: Image.Image, second: Image.Image) -> float:
    """Return the mean absolute difference of two pictures in levels of 0 to 255; infinite where the sizes differ."""
    if first.size != second.size:
        return float("inf")
    one, other = (np.asarray(picture.convert("RGB"), dtype=float) for picture in (first, second))
    return float(np.abs(one - other).mean())


def is_fresh(path: Path, figure: Figure) -> bool:
    """Tell whether a file holds the picture that a figure is."""
    if not path.is_file():
        return False
    with Image.open(path) as picture:
        same = picture.info.get(DRAWING) == digest(figure)
        return same and difference(picture, rendered(figure)) <= DIFFERENCE


def write(path: Path, figure: Figure) -> None:
    """Write a figure as a small PNG that holds its digest."""
    about = PngInfo()
    about.add_text(DRAWING, digest(figure))
    small = rendered(figure).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    write_whole(path, lambda place: small.save(place, format="PNG", optimize=True, pnginfo=about))


def main() -> int:
    """Read the options and do it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the file is not fresh")
    options = parser.parse_args()
    figure = method_picture()
    fresh = is_fresh(METHOD, figure)
    if not fresh and not options.check:
        write(METHOD, figure)
    print(f"{METHOD.name}: {'as the code draws it' if fresh else 'not fresh' if options.check else 'drawn'}")
    return int(options.check and not fresh)


if __name__ == "__main__":
    sys.exit(main())
