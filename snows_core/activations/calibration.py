"""Calibration images: read and checked once, loudly, then laid out in one tensor in a seeded random order."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from snows_core.activations.batches import check_image_tensor, read_batches, wrong_shape
from snows_core.devices import free_memory
from snows_core.errors import invalid_argument

FEW = 32
PIECE = 64  # images that are converted at a time, so that no second copy of a large set exists on the way
MANY = 20_000  # images from a source without a length, past which it is taken for an endless one


def calibration_parts(images: Tensor | Iterable[Any], limit: int | None = None, few: int = FEW) -> list[Tensor]:
    """Read and check calibration images.

    Args:
        images: tensor (N, C, H, W), or a DataLoader or iterable of ``x`` or ``(x, y)`` batches; labels are ignored.
        limit: use at most this many images, the first ones.
        few: warn below this many.

    Returns:
        Non-empty list of float tensors (n, C, H, W) in the order given; a tensor that came in is not copied.

    Raises:
        SnowsError: on anything but a non-empty set of finite floating-point images of one shape.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise invalid_argument("max_images", repr(limit), "an integer >= 1 or None")
    if isinstance(images, Tensor):
        _check(images)
        parts = [images[:limit]]
    else:
        parts = _gathered(images, limit)
    count = sum(map(len, parts))
    if count == 0:
        raise invalid_argument(
            "images", "0 images", "at least one", "A few hundred unlabelled training images are usual."
        )
    odd = sum(int((~torch.isfinite(part)).flatten(1).any(1).sum()) for part in parts)
    if odd:
        raise invalid_argument(
            "images",
            f"{odd} images with NaN or infinite values",
            "finite values",
            "Check the normalisation (a zero standard deviation?).",
        )
    if count < few:
        warnings.warn(
            f"images: only {count} calibration images; a few hundred are usual, below {few} the fit is noisy",
            stacklevel=3,
        )
    return parts


def first_images(parts: list[Tensor], count: int) -> Tensor:
    """Return the first images of all parts together, at most ``count``, in memory of their own."""
    chosen: list[Tensor] = []
    for part in parts:
        chosen.append(part[: count - sum(map(len, chosen))])
        if sum(map(len, chosen)) >= count:
            break
    return torch.cat(chosen).clone()


def shuffled(parts: list[Tensor], seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Lay all images out in one tensor in a random order, and empty the list: they are held once.

    A set that is sorted by class would show a sample of its curvature one class alone; the order is the same wherever
    the seed is.

    Args:
        parts: from :func:`calibration_parts`; emptied.
        seed: of the permutation.
        like: a tensor (n, C, H, W) whose dtype, device and strides (channels first or last) the result takes.

    Returns:
        Images (N, C, H, W), and at each place the position (N,) that its image had.
    """
    count, shape = sum(map(len, parts)), parts[0].shape[1:]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    place = torch.empty_like(order)
    place[order] = torch.arange(count)
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    whole = torch.empty((count, *shape), dtype=like.dtype, device=like.device, memory_format=layout)
    start = 0
    while parts:
        for piece in torch.split(parts.pop(0).detach(), PIECE):
            whole[place[start : start + len(piece)]] = piece.to(whole)
            start += len(piece)
    return whole, order


def near_equal(count: int, size: int) -> list[int]:
    """Cut ``count`` images into batches of at most ``size`` whose sizes differ by one at most.

    A short last batch would weigh its few images as heavily as a full one in every step that takes one batch.

    Returns:
        The sizes, the larger ones first.

    >>> near_equal(65, 64)
    [33, 32]
    """
    batches = -(-count // size)
    return [count // batches + (i < count % batches) for i in range(batches)]


def _gathered(images: Iterable[Any], limit: int | None) -> list[Tensor]:
    parts: list[Tensor] = []
    count = size = 0
    room = 0.5 * free_memory(torch.device("cpu"))
    bounded = limit is not None or _has_length(images)
    for x, _ in read_batches(images):
        _check(x)
        if parts and x.shape[1:] != parts[0].shape[1:]:
            raise invalid_argument(
                "images",
                f"shapes {tuple(parts[0].shape[1:])} and {tuple(x.shape[1:])}",
                "one shape",
                "Resize or crop them alike.",
            )
        parts.append(x if limit is None else x[: limit - count])
        count, size = count + len(x), size + x.numel() * x.element_size()
        if limit is not None and count >= limit:
            break
        if size > room or (count > MANY and not bounded):
            raise invalid_argument(
                "images",
                f"more than {count:,} images ({size / 1e9:.1f} GB) without an end in sight",
                "a few hundred to a few thousand",
                "Pass max_images=, for instance max_images=512.",
            )
    if not parts:
        raise invalid_argument("images", "no batches", "at least one image")
    return parts


def _has_length(images: Any) -> bool:
    try:
        return len(images) >= 0
    except Exception:  # none, or one that fails in a way of its own
        return False


def _check(x: Tensor) -> None:
    check_image_tensor(x)
    if x.ndim != 4:
        raise wrong_shape(x)
    if 0 in x.shape[1:]:
        raise invalid_argument("images", f"shape {tuple(x.shape)}", "images with channels and pixels")
    if not x.is_floating_point():
        raise invalid_argument(
            "images",
            f"dtype {x.dtype}",
            "a floating-point dtype, normalised as in training",
            "Convert with images.float().div(255), then normalise.",
        )
