"""Images in folders: one folder a class, or a flat folder without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snows_core.errors import invalid_argument
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.image_modes import GREY_MODES, mode_of, read_image
from snows_core.zoo.preparation import Preparation, normalised
from snows_core.zoo.tree import SUFFIXES, folder_names, index_tree
from snows_core.zoo.unreadable import Unreadable, UnreadableImage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Sample = tuple[str | Path, int]  # texts: a million paths take several times the memory


class FolderImages(Dataset):
    """Image files, read and transformed when asked for.

    ``unreadable`` counts those that a :class:`~snows_core.zoo.bundle.Split` left out because no decoder reads them.

    Args:
        samples: (file, label) pairs; label -1 means none, and items are then bare images.
        transform: maps a PIL image to a normalised float tensor (C, H, W).
        shape: (C, H, W) that every image must have after the transform.

    Raises:
        SnowsError: when colour is expected and the images are grey.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: Callable[[Any], Tensor], shape: tuple[int, int, int]
    ) -> None:
        self.samples, self.transform, self.shape = list(samples), transform, shape
        self.labelled = all(label >= 0 for _, label in self.samples)
        self.unreadable = Unreadable(len(self.samples))
        if shape[0] == 3:
            self._refuse_grey()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """Return ``(image, label)``, or the image alone where there are no labels."""
        path, label = self.samples[index]
        image = self.transform(read_image(Path(path), "L" if self.shape[0] == 1 else "RGB"))
        if tuple(image.shape) != self.shape:
            raise invalid_argument(
                "image_size",
                f"{tuple(image.shape)} from {path}",
                f"{self.shape} (channels, height, width)",
                "Resize or remove this file; a transform of your own must give all images this size.",
            )
        return (image, label) if self.labelled else image

    def _refuse_grey(self) -> None:
        """Look at up to 16 files; a few grey ones among colour are usual, all grey is another data set."""
        step = max(1, len(self.samples) // 16)
        looked = [Path(path) for path, _ in self.samples[::step]]
        modes = [mode for path in looked if (mode := _mode(path))]
        if modes and all(mode in GREY_MODES for mode in modes):
            raise invalid_argument(
                "data",
                f"grey images ({looked[0]} and others)",
                "colour images (3 channels)",
                "Use a network with one input channel and a mean and std of one value, or convert the files to RGB.",
            )


def _mode(path: Path) -> str:
    """Return the colour mode of a file, or "" where it cannot be read, which is counted when its image is needed."""
    try:
        return mode_of(path)
    except UnreadableImage:
        return ""


def files_in(folder: Path, progress: bool = True) -> list[Path]:
    """Return the image files under a folder, at any depth, in alphabetical order, without hidden ones.

    Args:
        folder: the tree.
        progress: whether a long walk shows a bar.
    """
    return [Path(file) for file in index_tree(folder, progress).files()]


def class_names(folder: Path, argument: str = "root", progress: bool = True) -> list[str]:
    """Return the class folders of a tree in alphabetical order.

    Args:
        folder: the tree.
        argument: what the caller's argument is called, for messages.
        progress: whether a long walk shows a bar.

    Raises:
        SnowsError: when the folder is missing or has no class folder with an image.
    """
    if not folder.is_dir():
        fix = f"Put images at {folder}/<class>/*."
        raise invalid_argument(argument, f"no folder {folder}", "a tree with one folder a class", fix)
    names = list(index_tree(folder, progress).classes)
    if not names:
        fix = f"Images are files ending in {', '.join(SUFFIXES)}; hidden folders do not count."
        raise invalid_argument(argument, f"no class folder with images in {folder}", "<class>/<image> files", fix)
    return names


def labelled_samples(folder: Path, label_of: dict[str, int], progress: bool = True) -> list[Sample]:
    """Return every image of a class tree with its label.

    Args:
        folder: the tree.
        label_of: from a class folder's name to its label.
        progress: whether a long walk shows a bar.
    """
    names = class_names(folder, progress=progress)
    files = index_tree(folder, progress).classes
    return [(file, label_of[name]) for name in names for file in files[name]]


@cache
def imagenet_labels() -> dict[str, int]:
    """Return the ImageNet-1k class index of every WordNet id, such as ``{"n01440764": 0, ...}``."""
    from timm.data import ImageNetInfo

    return {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def imagenet_classes() -> list[str]:
    """Return the 1,000 ImageNet class names in label order."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(index) for index in range(info.num_classes())]


def label_map(names: Sequence[str], num_classes: int | None = None) -> tuple[dict[str, int], list[str]]:
    """Return the label of each class folder, and all class names in label order.

    Folders that are all WordNet ids of ImageNet get their ImageNet index, so that a network with 1,000 outputs is
    measured rightly on a few of its classes; other folders are numbered alphabetically, and so are WordNet ids where
    the network tells apart exactly as many classes as there are folders.

    Args:
        names: of the folders, in alphabetical order.
        num_classes: classes that the network tells apart, or None.
    """
    imagenet = imagenet_labels()
    numbered = num_classes == len(names) < len(imagenet)
    if all(name in imagenet for name in names) and not numbered:
        return {name: imagenet[name] for name in names}, imagenet_classes()
    return {name: index for index, name in enumerate(names)}, list(names)


def load_folder(name: str, root: str | Path | None, wanted: Preparation, download: bool = True) -> DataBundle:
    """Return the user's own images, named ``folder:<path>``.

    ``<path>/train/<class>/*`` with ``<path>/test`` or ``<path>/val`` beside it is used as it is divided. In
    ``<path>/<class>/*`` every fifth image is set aside for testing, and so it is where there is only one of train, test
    and val, and in a flat ``<path>/*`` without labels.
    Hidden files and folders are left out. Depth and colour of the files: see ``image_modes.read_image``.

    Args:
        name: "folder:<path>".
        root: not used: the path stands alone.
        wanted: mean and std of one value or of three decide between grey and colour; default ImageNet's. Images are
            224 high and wide by default; up to 64 the whole image is resized, above it the centre is cropped.
        download: not used: nothing can be downloaded.

    Raises:
        SnowsError: on a missing or empty folder, or grey images for colour.
    """
    path = name.removeprefix("folder:")
    folder = _folder(path)
    if folder is None:
        fix = f"Check the path; one that does not begin with / starts at {Path.cwd()}."
        raise invalid_argument(
            "data", f"'folder:{path}', which is not a folder", "folder:<path> of an existing folder", fix
        )
    mean, std = wanted.moments((IMAGENET_MEAN, IMAGENET_STD))
    size = wanted.image_size or 224
    shape = (len(mean), size, size)
    transform = wanted.transform or normalised(size, mean, std, crop=size > 64)
    train, test, names, words = _divided(folder, wanted)
    sets = [FolderImages(samples, transform, shape) for samples in (train, test)]
    first, second = (Split(images, labelled=images.labelled) for images in sets)
    return DataBundle(name, first, second, names, shape, mean, std, words)


def _folder(path: str) -> Path | None:
    """Return the folder of a path as it was typed, or None where there is none."""
    try:
        folder = Path(path).expanduser()
        return folder if path.strip() and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a home of nobody's, a null character
        return None


def _divided(root: Path, wanted: Preparation) -> tuple[list[Sample], list[Sample], list[str], str]:
    """Return training samples, test samples and class names of a folder, and how it was divided in words."""
    folders = folder_names(root)
    held_out = next((root / name for name in ("test", "val") if name in folders), None)
    if "train" in folders and held_out is not None:
        train = root / "train"
        found = sorted({*class_names(train, "data", wanted.progress), *class_names(held_out, "data", wanted.progress)})
        labels, names = label_map(found, wanted.num_classes)
        parts = [labelled_samples(part, labels, wanted.progress) for part in (train, held_out)]
        return parts[0], parts[1], names, f"image files in {root}, as divided into train and {held_out.name}"
    if folders in (["train"], ["test"], ["val"]) and index_tree(root / folders[0], wanted.progress).classes:
        root = root / folders[0]  # one part of a division alone
    tree = index_tree(root, wanted.progress)
    if found := list(tree.classes):
        labels, names = label_map(found, wanted.num_classes)
        samples = [(file, labels[name]) for name, files in tree.classes.items() for file in files]
    else:
        samples, names = [(file, -1) for file in tree.files()], []
    if len(samples) < 2:
        fix = f"Images are files ending in {', '.join(SUFFIXES)}; hidden files and folders do not count."
        raise invalid_argument(
            "data", f"{len(samples)} images in {root}", "at least 2, one to calibrate on and one to test", fix
        )
    held = torch.arange(len(samples)) % 5 == 0
    return (
        [sample for sample, out in zip(samples, held, strict=True) if not out],
        [sample for sample, out in zip(samples, held, strict=True) if out],
        names,
        f"image files in {root}, every fifth of them set aside for testing",
    )
