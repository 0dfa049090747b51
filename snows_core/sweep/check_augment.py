"""A function that augments images, called once before any work: what it gives must be images like those it got."""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.errors import invalid_argument, users_code
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
