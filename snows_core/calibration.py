"""Calibration images: checked once, loudly, and cut into batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from snows_core.errors import SnowsError, bad

FEW = 32


def calibration_batches(
    images: Tensor | Iterable[Any],
    batch_size: int,
    device: torch.device | None = None,
    limit: int | None = None,
    few: int = FEW,
) -> list[Tensor]:
    """Check calibration images and return them as batches on a device.

    Args:
        images: tensor (N, C, H, W), or a DataLoader or iterable of ``x`` or ``(x, y)`` batches; labels are ignored.
        batch_size: images per batch; the last may be smaller.
        device: where batches go; default: where they are.
        limit: use at most this many images.
        few: warn below this many.

    Returns:
        Non-empty list of float batches.

    Raises:
        SnowsError: on anything but a non-empty set of finite floating-point images of one shape.
    """
    if batch_size < 1:
        raise bad("batch_size", batch_size, "an integer >= 1")
    if limit is not None and limit < 1:
        raise bad("max_images", limit, "an integer >= 1 or None")
    if isinstance(images, Tensor):
        _check(images)
        whole = images[:limit]
    else:
        whole = _gather(images, limit)
    if len(whole) == 0:
        raise bad("images", "0 images", "at least one", "A few hundred unlabelled training images are usual.")
    if not torch.isfinite(whole).all():
        count = int((~torch.isfinite(whole)).flatten(1).any(1).sum())
        raise bad("images", f"{count} images with NaN or infinite values", "finite values",
                  "Check the normalisation (a zero standard deviation?).")  # fmt: skip
    if len(whole) < few:
        warnings.warn(
            f"images: only {len(whole)} calibration images; a few hundred are usual, below {few} the fit is noisy",
            stacklevel=3,
        )
    return [batch.to(device) if device is not None else batch for batch in whole.split(batch_size)]


def _gather(images: Iterable[Any], limit: int | None) -> Tensor:
    try:
        iterator = iter(images)
    except TypeError:
        raise bad("images", type(images).__name__, "a tensor (N, C, H, W), a DataLoader or batches") from None
    parts: list[Tensor] = []
    count = 0
    for batch in iterator:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(x, Tensor):
            raise bad(
                "images", f"a batch of type {type(x).__name__}", "tensors (N, C, H, W), or (images, labels) pairs"
            )
        _check(x)
        if parts and x.shape[1:] != parts[0].shape[1:]:
            raise bad("images", f"shapes {tuple(parts[0].shape[1:])} and {tuple(x.shape[1:])}", "one shape",
                      "Resize or crop them alike.")  # fmt: skip
        parts.append(x)
        count += len(x)
        if limit is not None and count >= limit:
            break
    if not parts:
        raise bad("images", "no batches", "at least one image")
    return torch.cat(parts)[:limit]


def _check(x: Tensor) -> None:
    if x.ndim != 4:
        raise bad("images", f"shape {tuple(x.shape)}", "(N, C, H, W)",
                  "Add the batch axis with images.unsqueeze(0)." if x.ndim == 3 else "")  # fmt: skip
    if not x.is_floating_point():
        raise bad("images", f"dtype {x.dtype}", "a floating-point dtype, normalised as in training",
                  "Convert with images.float().div(255), then normalise.")  # fmt: skip


def run_on_example(model: torch.nn.Module, example: Tensor) -> Any:
    """Run a model on a few images to see that they fit it, and turn what torch says into one clear error."""
    try:
        with torch.no_grad():
            output = model(example)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SnowsError(
            f"images: got shape {tuple(example.shape)} of {example.dtype}, which the model refuses ({reason}). "
            "Use the channels, size and dtype that the model was trained with."
        ) from error
    return output
