"""Test images with their labels, batch by batch, each checked before a network sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from snows_core.activations.batches import (
    check_image_tensor,
    check_label_tensor,
    read_batches,
    split_batch,
    wrong_shape,
)
from snows_core.errors import SnowsError, integer, invalid_argument

MANY = 100_000  # images from a source without a length, past which it is taken for an endless one


def checked_batches(images: Any, labels: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield checked batches of images and labels; empty ones are left out.

    Args:
        images: as :func:`snows_core.evaluate.evaluate` takes them.
        labels: likewise.
        batch_size: images a batch, for a tensor of images.

    Yields:
        Images (N, C, H, W), and labels or None.

    Raises:
        SnowsError: as :func:`~snows_core.evaluate.evaluate`, on images and labels that are none or do not match.
    """
    if isinstance(images, Tensor):
        yield from _cut(*split_batch((images, labels), strict=True), batch_size)
        return
    if labels is not None:
        raise invalid_argument(
            "labels", "a tensor beside a loader", "None", "Let the loader yield (images, labels) pairs instead."
        )
    if isinstance(images, Mapping):
        yield from _cut(*split_batch(images, strict=True), batch_size)
        return
    count, bounded = 0, hasattr(type(images), "__len__")
    for x, y in read_batches(images, strict=True):
        _check_batch(x, y)
        count += len(x)
        if count > MANY and not bounded:
            fix = "Pass what has a length, or itertools.islice of it."
            raise invalid_argument("images", f"more than {MANY:,} images without an end in sight", "an end", fix)
        if len(x):
            yield x, y


def _cut(images: Tensor, labels: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    size = integer("batch_size", size, 1)
    _check_batch(images, labels)
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        yield images[part], None if labels is None else labels[part]


def _check_batch(images: Tensor, labels: Tensor | None) -> None:
    check_image_tensor(images)
    if labels is not None:
        check_label_tensor(labels)
    if labels is not None and labels.ndim == 0 and images.ndim < 4:
        raise SnowsError(
            f"images: got a single image of shape {tuple(images.shape)} with its label; expected batches (N, C, H, W)"
            " with labels (N,). A data set goes through torch.utils.data.DataLoader(dataset, batch_size=256)."
        )
    if images.ndim < 2 or images.ndim == 3:
        beside = "Labels go beside a tensor as evaluate(model, images, labels), or in pairs from a loader."
        raise wrong_shape(images, beside if images.ndim == 1 else "")
    if labels is not None and labels.ndim == 0:
        raise invalid_argument("labels", "one number", f"one per image ({len(images)})")
    if labels is not None and len(labels) != len(images):
        raise invalid_argument("labels", f"{len(labels)} labels", f"one per image ({len(images)})")
    if 0 in images.shape[1:]:
        raise invalid_argument("images", f"shape {tuple(images.shape)}", "images with channels and pixels")
    if images.is_floating_point() and not torch.isfinite(images).all():
        odd = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        fix = "Check the normalisation (a zero standard deviation?)."
        raise invalid_argument("images", f"{odd} images with NaN or infinite values", "finite values", fix)
