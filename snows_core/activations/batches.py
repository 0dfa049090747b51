"""The batches of a loader, read in one place: each a tensor, a pair, or a dictionary."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from snows_core.errors import SnowsError, invalid_argument, users_code

IMAGE_KEYS = ("pixel_values", "images", "image", "x", "inputs", "input", "img")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")
FORMS = (
    "tensors (N, C, H, W), or (images, labels) pairs, or dictionaries with one of the keys "
    f"{', '.join(IMAGE_KEYS)} (labels: {', '.join(LABEL_KEYS)})"
)

MOST_EMPTY = 1_000  # batches in a row without an image, past which a source is taken for one that has none
_END = object()


def read_batches(images: Iterable[Any], *, strict: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield images and labels of every batch of a loader or an iterable; see :func:`split_batch`.

    Args:
        images: what yields batches.
        strict: whether labels that are no numbers are an error; otherwise they count as none.

    Yields:
        Images, not yet checked, and labels or None.

    Raises:
        SnowsError: when nothing can be read from it, or a batch has no images.
    """
    empty = 0
    for batch in _each(images):
        x, y = split_batch(batch, strict=strict)
        empty = 0 if x.ndim and len(x) else empty + 1
        if empty > MOST_EMPTY:
            raise invalid_argument("images", f"{empty:,} batches without an image in a row", "batches of images")
        yield x, y


def _each(images: Iterable[Any]) -> Iterator[Any]:
    """Yield what an iterable yields; what goes wrong in it becomes an error that says at which batch."""
    expected = "a tensor (N, C, H, W), a DataLoader or batches"
    if not hasattr(type(images), "__iter__") and not hasattr(type(images), "__getitem__"):
        raise invalid_argument("images", type(images).__name__, expected)
    with users_code("images", f"a {type(images).__name__} that cannot be read", expected):
        iterator = iter(images)
    for number in itertools.count(1):
        with users_code("images", f"a {type(images).__name__} that fails at its batch {number}", "batches of images"):
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch


def check_image_tensor(images: Tensor, argument: str = "images") -> None:
    """Refuse tensors whose values are not there to be read as images, whatever their shape.

    Args:
        images: what came.
        argument: its name, for messages.

    Raises:
        SnowsError: on nested, sparse, quantised and complex tensors, 8-bit floats, and the meta device.
    """
    kind = str(images.dtype).removeprefix("torch.")
    what = next(
        (
            words
            for words, is_so in (
                ("a nested tensor", images.is_nested),
                (f"a tensor of layout {str(images.layout).removeprefix('torch.')}", images.layout is not torch.strided),
                ("a tensor on the meta device, without values", images.is_meta),
                (f"a quantised tensor ({kind})", images.is_quantized),
                (f"a tensor of dtype {kind}", images.is_complex() or kind.startswith("float8")),
            )
            if is_so
        ),
        "",
    )
    if what:
        fix = "Use images.to_dense()." if "layout" in what else ""
        raise invalid_argument(argument, what, "an ordinary tensor of images (N, C, H, W)", fix)


def check_label_tensor(labels: Tensor) -> None:
    """Refuse labels whose values are not there to be read: those on the meta device, and sparse ones.

    Raises:
        SnowsError: on such labels.
    """
    if labels.is_meta or labels.layout is not torch.strided or labels.is_quantized:
        what = "on the meta device, without values" if labels.is_meta else f"of {labels.dtype}, sparse or quantised"
        raise invalid_argument("labels", f"a tensor {what}", "an ordinary tensor of class indices (N,)")


def wrong_shape(images: Tensor, fix: str = "") -> SnowsError:
    """Build the error for images that are not (N, C, H, W); a single image lacks the batch axis.

    Args:
        images: the tensor.
        fix: advice where it is no single image.

    Returns:
        The error, to be raised.
    """
    fix = "Add the batch axis with images.unsqueeze(0)." if images.ndim == 3 else fix
    return invalid_argument("images", f"shape {tuple(images.shape)}", "(N, C, H, W)", fix)


def split_batch(batch: Any, argument: str = "images", *, strict: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return images and labels of one batch, as a loader or an iterable yields it.

    Args:
        batch: images (N, C, H, W); a tuple or list of images, labels and anything more, which is not looked at; or a
            mapping with images under one of ``IMAGE_KEYS`` and labels under one of ``LABEL_KEYS``.
        argument: what the caller's argument is called, for the message.
        strict: whether labels that are no numbers are an error; otherwise they count as none.

    Returns:
        Images, and labels as a tensor of any shape, or None where the batch has none. Nothing is copied.

    Raises:
        SnowsError: when there is no tensor of images in the batch, or (``strict``) labels that are no numbers.

    >>> images, labels = split_batch({"pixel_values": torch.zeros(2, 3, 4, 4), "labels": [1, 0]})
    >>> images.shape, labels
    (torch.Size([2, 3, 4, 4]), tensor([1, 0]))
    """
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in IMAGE_KEYS if isinstance(batch.get(key), Tensor)), None)
        labels = next((batch[key] for key in LABEL_KEYS if batch.get(key) is not None), None)
    elif isinstance(batch, list | tuple):
        images, labels = (*batch, None, None)[:2]
    else:
        images, labels = batch, None
    if not isinstance(images, Tensor):
        raise invalid_argument(argument, _described(batch, images), FORMS, _advice(batch, images))
    return images, _label_tensor(labels, strict)


def _label_tensor(labels: Any, strict: bool) -> Tensor | None:
    if labels is None or isinstance(labels, Tensor):
        return labels
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # strings, paths, boxes: each has an error of its own
        if not strict:
            return None
        raise SnowsError(
            f"labels: got {_kind(labels)} in a batch; expected a tensor of class indices (N,). "
            "Let the loader yield numbers, or images alone where there are no labels."
        ) from error


def _kind(value: Any) -> str:
    """Return the type of a value, with what is inside where it is a list."""
    inner = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return f"a {type(value).__name__}{inner}"


def _described(batch: Any, images: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a batch of type {type(batch).__name__} with the keys {', '.join(map(str, batch)) or 'none'}"
    if batch is images:
        return f"a batch of type {type(batch).__name__}"
    return f"a batch of type {type(batch).__name__} that begins with {_kind(images)}"


def _advice(batch: Any, images: Any) -> str:
    if isinstance(images, list | tuple):
        return "A network of several inputs needs a wrapper that takes the image alone and holds the others."
    if hasattr(images, "__array__"):
        return "Convert arrays with torch.from_numpy, and PIL images with a transform that gives normalised tensors."
    if isinstance(batch, str):
        return "Load files first, for instance with snows_core.zoo.load_data('folder:<path>')."
    return ""
