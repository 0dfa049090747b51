"""Image files of any depth and colour model, read as what networks are trained on: 8 bits, grey or RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from snows_core.errors import SnowsError, invalid_argument
from snows_core.zoo.unreadable import UnreadableImage

# Decoders that are asked, whatever a file is called: others of Pillow's run programs (EPS) or fetch what a file names.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF files


def read_image(path: Path, mode: str) -> Image.Image:
    """Read a file as 8-bit grey or colour.

    Grey values of 16 bits are divided by 257, so that 65,535 is white. Colours of transparent images are taken as they
    stand in the file and the transparency is dropped, and the orientation noted by a camera is not applied: so do the
    loaders of torchvision and timm, with which networks are trained.

    Args:
        path: the file.
        mode: "L" or "RGB".

    Returns:
        The image in that mode.

    Raises:
        UnreadableImage: when the file cannot be decoded, or promises so many pixels that it is a decompression bomb.
        SnowsError: when its numbers have no known scale (32-bit integers, floats).
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return _converted(image, mode, path)
    except SnowsError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in a decoder: OSError, SyntaxError, struct.error, ...
        raise _unreadable(path, error) from error


def mode_of(path: Path) -> str:
    """Return the colour mode of a file, from its header alone.

    Args:
        path: the file.

    Raises:
        UnreadableImage: when it is no image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.mode
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UnreadableImage:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImage(f"data: {path} cannot be read as an image ({reason}). Remove or replace the file.")


def _converted(image: Any, mode: str, path: Path) -> Image.Image:
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _from_16_bits(image, path)
    elif image.mode in ("I", "F"):
        raise _refused(path, image.mode, "pixels whose black and white are known")
    if image.mode in ("P", "PA", "RGBa", "La"):  # a palette's or multiplied colours become plain ones, not a composite
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        try:
            image = image.convert("RGB")
        except (ValueError, ImportError) as error:
            raise _refused(path, image.mode, "a mode that Pillow can convert to RGB") from error
    return image.convert(mode)


def _from_16_bits(image: Any, path: Path) -> Image.Image:
    """Divide grey values 0 to 65,535 by 257; in TIFF files of fewer bits, white is the largest number of these bits."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise _refused(path, f"{image.mode}, in which 0 is white", "0 for black")
    bits = np.atleast_1d(tags.get(BITS, 16))[0]
    white = 2 ** int(bits) - 1
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > white:
        raise _refused(path, f"{image.mode} with values {values.min()} to {values.max()}", f"0 to {white}")
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _refused(path: Path, mode: str, expected: str) -> SnowsError:
    fix = "Convert the file to 8-bit grey or RGB, so that 0 is black and 255 white."
    return invalid_argument("data", f"{path} of mode {mode}", f"8- or 16-bit images, {expected}", fix)
