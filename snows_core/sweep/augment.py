"""Functions that change calibration images at random: one that is ready, and a look at one of the caller's.

Such a function is called once before any work: what it gives must be images like those it got.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snows_core.errors import integer, invalid_argument, shown, users_code
from snows_core.settings import Augment


def check_augment(augment: Augment, images: Tensor) -> None:
    """Call a function of (images, generator) once, and refuse it where it gives anything but such images.

    Args:
        augment: the function.
        images: a few calibration images (N, C, H, W); they are copied.

    Raises:
        SnowsError: when it fails, or returns no tensor, another shape, dtype or device, or values that are not finite.
    """
    like = f"shape {tuple(images.shape)}, {images.dtype} on {images.device}"
    expected = f"a function that returns images like those it gets, of {like}"
    with users_code("augment", "a function that fails", expected):
        found = augment(images.clone(), torch.Generator().manual_seed(0))
    if not isinstance(found, Tensor):
        raise invalid_argument("augment", f"a function that returns a {type(found).__name__}", expected)
    got = (tuple(found.shape), found.dtype, found.device) if found.layout is torch.strided else (found.layout,)
    if got != (tuple(images.shape), images.dtype, images.device):
        raise invalid_argument("augment", f"a function that returns {' '.join(map(str, got))}", expected)
    if not bool(torch.isfinite(found).all()):
        raise invalid_argument("augment", "a function that returns NaN or infinite values", expected)


def flip_and_shift(images: Tensor, generator: torch.Generator, shift: int = 4) -> Tensor:
    """Mirror half of the images and move each by up to ``shift`` pixels, edges repeated: for natural images.

    Args:
        images: (N, C, H, W).
        generator: source of randomness, on the CPU.
        shift: largest move in pixels.

    Returns:
        Images of the same shape.

    Raises:
        SnowsError: on anything but images, a generator and a number of pixels.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise invalid_argument("images", shown(getattr(images, "shape", images)), "images (N, C, H, W)")
    if not isinstance(generator, torch.Generator):
        raise invalid_argument("generator", shown(generator), "a torch.Generator on the CPU")
    shift = integer("shift", shift, 0, "a number of pixels")
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
    padded = nn.functional.pad(images, (shift,) * 4, mode="replicate")
    rows, columns = torch.randint(0, 2 * shift + 1, (2, count), generator=generator).tolist()
    moved = [padded[i, :, r : r + height, c : c + width] for i, (r, c) in enumerate(zip(rows, columns, strict=True))]
    return torch.stack(moved)
