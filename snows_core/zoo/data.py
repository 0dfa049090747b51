"""One door to every data set: ``load_data(name)``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from snows_core.errors import SnowsError, invalid_argument
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.cifar import load_cifar
from snows_core.zoo.digits import load_digits
from snows_core.zoo.folder import load_own_folder
from snows_core.zoo.imagenet import load_imagenet
from snows_core.zoo.imagenet_samples import load_imagenet_samples
from snows_core.zoo.preparation import Preparation

__all__ = ["DATASETS", "DataBundle", "Split", "load_data", "load_folder"]

# Each is called with its name, the folder of all data sets, what is wanted of the images, and whether the network may
# be used.
LOADERS: dict[str, Callable[[str, str | Path | None, Preparation, bool], DataBundle]] = {
    "digits": load_digits,
    "cifar10": load_cifar,
    "cifar10-full": load_cifar,
    "cifar100": load_cifar,
    "imagenette": load_imagenet,
    "imagenet": load_imagenet,
    "imagenet-samples": load_imagenet_samples,
    "folder:<path>": load_own_folder,
}
DATASETS = tuple(LOADERS)
"""Names that :func:`load_data` knows; <path> is a folder of images."""


def load_data(
    name: str,
    root: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    num_classes: int | None = None,
    download: bool = True,
) -> DataBundle:
    """Return a data set, its images normalised for a network.

    Args:
        name: "digits" (in the package), "cifar10" (the images that this project's results stand on), "cifar10-full"
            (all of them), "cifar100", "imagenette", "imagenet", "imagenet-samples", or "folder:<path>".
        root: folder of all data sets; default the variable ``SNOWS_DATA``, else the user's cache folder.
        mean: one value a channel, subtracted from pixels in [0, 1]; default what suits the data set's usual network.
        std: one value a channel, divided by.
        image_size: height and width of the images; default the data set's own (16 for digits, 32 for CIFAR, else 224).
        transform: a network's own test-time transform from a PIL image to a tensor, instead of resizing and
            normalisation; ``mean``, ``std`` and ``image_size`` then only describe it.
        num_classes: classes that the network tells apart. Folders named by WordNet ids get ImageNet's labels 0 to 999,
            unless there are exactly so many of them: then they are numbered in alphabetical order, as in fine-tuning.
        download: whether the network may be used; archives are checked by md5 in any case.

    Returns:
        Training and test images, class names, and where they came from.

    Raises:
        SnowsError: on an unknown name, a missing root or tree, a checksum mismatch, no network, or images that do not
            fit.
    """
    return load_prepared(name, root, Preparation(mean, std, image_size, transform, num_classes), download)


def load_folder(
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    num_classes: int | None = None,
    test_share: float | None = None,
) -> DataBundle:
    """Return images of one's own, as ``load_data("folder:<path>")`` does, and say how many of them to test on.

    The folder is ``<path>/<class>/*``, or has parts of that form: ``train`` and ``val`` (or ``test``), or a ``val``
    alone. Loose images without classes have no labels.

    Args:
        path: the folder.
        mean: see :func:`load_data`.
        std: likewise.
        image_size: likewise.
        transform: likewise.
        num_classes: likewise.
        test_share: share of the images to set aside for testing, spread evenly over the classes; default 0.2. A few
            hundred images are enough to calibrate on, and many to test on make intervals narrow: of a small ``val``
            0.8 is a good share. A folder that is divided into parts stays as it is.

    Raises:
        SnowsError: on a missing or empty folder, a share outside 0 to 1, or images that do not fit.
    """
    wanted = Preparation(mean, std, image_size, transform, num_classes, test_share=test_share)
    return load_prepared(f"folder:{path}", None, wanted)


def load_prepared(name: str, root: str | Path | None, wanted: Preparation, download: bool = True) -> DataBundle:
    """Return a data set, as :func:`load_data` does.

    Args:
        name: of the data set.
        root: folder of all data sets, or None.
        wanted: what becomes of the images, and whether a long look for files shows a bar.
        download: whether the network may be used.

    Raises:
        SnowsError: see :func:`load_data`.
    """
    kind = "folder:<path>" if str(name).startswith("folder:") else name
    if not isinstance(name, str) or kind not in LOADERS:
        raise _unknown(str(name))
    if wanted.test_share is not None and kind != "folder:<path>":
        raise invalid_argument("test_share", wanted.test_share, f"None, as '{name}' is divided already")
    return LOADERS[kind](name, root, wanted, download)


def _unknown(name: str) -> SnowsError:
    """Build the error for a name that is none: with the nearest one where it is near, else with how to use a folder."""
    near = difflib.get_close_matches(name.lower(), DATASETS[:-1], n=1, cutoff=0.7)
    fix = "Images of your own are used as folder:<path>; in <path>/<class>/* they have labels, in <path>/* none."
    if near:
        fix = f"Nearest: {near[0]}."
    elif name and Path(name).expanduser().is_dir():
        fix = f"A folder of images is named folder:{name}."
    return invalid_argument("data", f"'{name}'", f"one of {', '.join(DATASETS)}", fix)
