"""The images of CIFAR-10 on which this project's results stand, found again in the official archive by their pixels.

They are 5,085 of the 50,000 training images and 1,017 of the 10,000 test images. ``cifar10_subset.safetensors`` lists
them. For each part, "train" and "test", it holds two arrays of bytes: ``<part>.digests`` (n, 8), the first 8 bytes of
the SHA-256 of an image's pixels (3,072 bytes: row by row, red, green and blue of each pixel), and ``<part>.labels``
(n,), its class. Their order is that of the image-folder tree: class by class, and by file name within a class. So the
positions of images, and with them what a seed draws, are the same for the tree and for the archive.

``tools/cifar_subset.py`` writes the list. No two images in it have the same pixels; if some had, each would be another
of the archive's images with these pixels and this label, in the archive's order.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from snows_core.errors import invalid_argument
from snows_core.zoo.weights import damaged_installation

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

FILE = Path(__file__).resolve().parent / "cifar10_subset.safetensors"
PARTS = ("train", "test")
LENGTH = 8  # bytes of a digest: among 60,000 images two different ones share them once in 10 billion such sets
Listed = tuple[bytes, int]  # digest and label of one image


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return the first 8 bytes of the SHA-256 of an image's pixels, uint8 (height, width, 3)."""
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()).digest()[:LENGTH]


def write_list(listed: Mapping[str, Sequence[Listed]], file: Path) -> None:
    """Write a list of images; the same list is the same bytes.

    Args:
        listed: "train" and "test", each with digest and label of its images, in order.
        file: where to; see the module for the format.
    """
    arrays = {}
    for part in PARTS:
        digests, labels = zip(*listed[part], strict=True)
        arrays[f"{part}.digests"] = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, LENGTH)
        arrays[f"{part}.labels"] = np.array(labels, dtype=np.uint8)
    save_file(arrays, file)


def read_list(file: Path | None = None) -> dict[str, list[Listed]]:
    """Return digest and label of the listed images, in order, for "train" and "test".

    Args:
        file: the list; default the one in the package.

    Raises:
        SnowsError: when the file is damaged.
    """
    file = FILE if file is None else file
    try:
        arrays = load_file(file)
    except Exception as error:  # of safetensors, which has a class of its own
        raise damaged_installation(file, error) from error
    return {
        part: [
            (row.tobytes(), int(label))
            for row, label in zip(arrays[f"{part}.digests"], arrays[f"{part}.labels"], strict=True)
        ]
        for part in PARTS
    }


def listed_positions(sets: Sequence[CIFAR10]) -> list[list[int]]:
    """Return where the listed images stand in the archive, in the order of the list.

    Training images are looked for among training images alone, test images among test images.

    Args:
        sets: the archive's training and test images.

    Returns:
        Positions in the training images, and in the test images.

    Raises:
        SnowsError: when some of the images are not there, or have another label; it says how many.
    """
    listed = read_list()
    found = [_find(listed[part], images.data, images.targets) for part, images in zip(PARTS, sets, strict=True)]
    missing = [sum(position is None for position in positions) for positions in found]
    if any(missing):
        raise invalid_argument(
            "root",
            f"an archive of CIFAR-10 without {missing[0]:,} of the {len(found[0]):,} training images and {missing[1]:,}"
            f" of the {len(found[1]):,} test images that {FILE.name} lists (pixels and label)",
            "all of them",
            "The data set cifar10-full takes every image of the archive as it is.",
        )
    return [[position for position in positions if position is not None] for positions in found]


def _find(listed: Sequence[Listed], pixels: Iterable[np.ndarray], labels: Sequence[int]) -> list[int | None]:
    """Return the position of each listed image, or None; each image of the archive is given out once."""
    places: dict[Listed, deque[int]] = defaultdict(deque)
    for position, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        places[pixel_digest(image), int(label)].append(position)
    return [places[key].popleft() if places.get(key) else None for key in listed]
