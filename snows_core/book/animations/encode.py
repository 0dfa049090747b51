"""Frames to files: animated PNGs that fit into a notebook, and strips of their main frames for print."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from snows_core.errors import SnowsError
from snows_core.files import write_whole

LIMIT = 120_000
"""Bytes that a file may have: a notebook holds it in text, a third longer, and stays below its own limit."""

COLOURS = 40
"""Colours of a file; lines and letters need few, and each halving saves a good part of the bytes."""

RESOLUTION = 100
"""Dots an inch: figures of six inches have the 600 pixels that a page shows."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "cm",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
"""The look of all animations: fonts that come with the plotting library, and no setting of the caller's."""

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#e69f00", "#009e73", "#7f7f7f"
"""Colours that colour-blind readers can tell apart, as in the figures of the book."""


@dataclass(frozen=True)
class Animation:
    """Frames in the order in which they are shown.

    Attributes:
        frames: figures of one size; the first is the last state, for viewers that show one frame alone.
        seconds: how long each stays.
        keys: numbers of the frames of the strip.
    """

    frames: Sequence[Figure]
    seconds: Sequence[float]
    keys: Sequence[int]


@contextmanager
def look() -> Iterator[None]:
    """Draw with the settings of ``STYLE`` and the plotting library's own, whatever the caller has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def pixels(figure: Figure) -> Image.Image:
    """Return a figure as an RGB image."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=RESOLUTION)
    return Image.open(whole).convert("RGB")


def few_colours(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Return images with the same at most 40 colours, those that all of them together need."""
    width, height = frames[0].size
    sheet = Image.new("RGB", (width, height * len(frames)))
    for number, frame in enumerate(frames):
        sheet.paste(frame, (0, height * number))
    palette = sheet.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    numbers, white = few[0].getpalette() or [], 3 * _background(few[0])
    for frame in few:  # white stays white, not nearly so
        frame.putpalette([*numbers[:white], 255, 255, 255, *numbers[white + 3 :]])
    return few


def write(animation: Animation, path: Path) -> tuple[Path, Path]:
    """Write ``<path>.png``, which moves for ever, and ``<path>-strip.png`` with the main frames, two a row.

    Args:
        animation: what to write.
        path: without ``.png``.

    Returns:
        Both files.

    Raises:
        SnowsError: where one is larger than ``LIMIT``; it is written nonetheless, to be looked at.
    """
    frames = few_colours([pixels(figure) for figure in animation.frames])
    moving, strip = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}-strip.png")
    times = [round(1000 * seconds) for seconds in animation.seconds]

    def save(place: Path) -> None:
        frames[0].save(
            place, format="PNG", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True
        )

    write_whole(moving, save)
    sheet = side_by_side([frames[key] for key in animation.keys])
    write_whole(strip, lambda place: sheet.save(place, format="PNG", optimize=True))
    for file in (moving, strip):
        if file.stat().st_size > LIMIT:
            size = f"{file.stat().st_size:,} bytes"
            raise SnowsError(f"{file.name}: got {size}; expected at most {LIMIT:,}. Draw fewer or smaller frames.")
    return moving, strip


def side_by_side(frames: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Return images of one palette as one, two in each row."""
    width, height = frames[0].size
    rows = (len(frames) + 1) // 2
    sheet = frames[0].resize((2 * width + gap, rows * height + (rows - 1) * gap))
    sheet.paste(_background(frames[0]), (0, 0, *sheet.size))
    for number, frame in enumerate(frames):
        sheet.paste(frame, ((number % 2) * (width + gap), (number // 2) * (height + gap)))
    return sheet


def _background(frame: Image.Image) -> int:
    """Return the palette's number of a frame's corner, which nothing is drawn on."""
    return int(frame.getpixel((0, 0)))  # type: ignore[arg-type] # a frame with a palette has one number a pixel
