"""Images in folders: one folder a class, or a flat folder without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snows_core.errors import invalid_argument
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.image_modes import GREY_MODES, mode_of, read_image
from snows_core.zoo.preparation import Preparation, normalised

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")  # folders of archivers, servers and desktops
Sample = tuple[Path, int]


class FolderImages(Dataset):
    """Image files, read and transformed when asked for.

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
        if shape[0] == 3:
            self._refuse_grey()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """Return ``(image, label)``, or the image alone where there are no labels."""
        path, label = self.samples[index]
        image = self.transform(read_image(path, "L" if self.shape[0] == 1 else "RGB"))
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
        looked = [path for path, _ in self.samples[::step]]
        if looked and all(mode_of(path) in GREY_MODES for path in looked):
            raise invalid_argument(
                "data",
                f"grey images ({looked[0]} and others)",
                "colour images (3 channels)",
                "Use a network with one input channel and a mean and std of one value, or convert the files to RGB.",
            )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _image_paths(folder: Path) -> Iterator[Path]:
    """Yield the image files under a folder, in no order; hidden ones and those in hidden folders are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in files:
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not _is_hidden(name) and path.is_file():
                yield path


def files_in(folder: Path) -> list[Path]:
    """Return the image files under a folder, at any depth, in alphabetical order, without hidden ones."""
    return sorted(_image_paths(folder))


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that hold images, in alphabetical order, without hidden ones."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
    return [name for name in names if next(_image_paths(folder / name), None) is not None]


def class_names(folder: Path, argument: str = "root") -> list[str]:
    """Return the class folders of a tree in alphabetical order.

    Args:
        folder: the tree.
        argument: what the caller's argument is called, for messages.

    Raises:
        SnowsError: when the folder is missing or has no class folder with an image.
    """
    if not folder.is_dir():
        fix = f"Put images at {folder}/<class>/*."
        raise invalid_argument(argument, f"no folder {folder}", "a tree with one folder a class", fix)
    names = class_folders(folder)
    if not names:
        fix = f"Images are files ending in {', '.join(SUFFIXES)}; hidden folders do not count."
        raise invalid_argument(argument, f"no class folder with images in {folder}", "<class>/<image> files", fix)
    return names


def labelled_samples(folder: Path, label_of: dict[str, int]) -> list[Sample]:
    """Return every image of a class tree with its label; ``label_of`` maps the folder's name to the label."""
    return [(path, label_of[name]) for name in class_names(folder) for path in files_in(folder / name)]


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
    ``<path>/<class>/*`` every fifth image is set aside for testing, and so it is in a flat ``<path>/*`` without labels.
    Hidden files and folders are left out. Depth and colour of the files: see ``image_modes.read_image``.

    Args:
        name: "folder:<path>".
        root: not used: the path stands alone.
        wanted: mean and std of one value or of three decide between grey and colour; default ImageNet's. Images are
            224 high and wide by default; up to 64 the whole image is resized, above it the centre is cropped.
        download: not used: nothing can be downloaded.

    Raises:
        SnowsError: on a missing or empty folder, grey images for colour, or half a train/test division.
    """
    path = name.removeprefix("folder:")
    folder = Path(path).expanduser()
    if not path.strip() or not folder.is_dir():
        fix = f"Check the path; one that does not begin with / starts at {Path.cwd()}."
        raise invalid_argument(
            "data", f"'folder:{path}', which is not a folder", "folder:<path> of an existing folder", fix
        )
    mean, std = wanted.moments((IMAGENET_MEAN, IMAGENET_STD))
    size = wanted.image_size or 224
    shape = (len(mean), size, size)
    transform = wanted.transform or normalised(size, mean, std, crop=size > 64)
    train, test, names = _divided(folder, wanted.num_classes)
    sets = [FolderImages(samples, transform, shape) for samples in (train, test)]
    first, second = (Split(images, labelled=images.labelled) for images in sets)
    return DataBundle(name, first, second, names, shape, mean, std, f"image files in {folder}")


def _divided(root: Path, num_classes: int | None) -> tuple[list[Sample], list[Sample], list[str]]:
    """Return training samples, test samples and class names of a folder."""
    if (root / "train").is_dir():
        held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
        if held_out is None:
            fix = f"Add one, or name {root / 'train'} itself to have every fifth image set aside."
            raise invalid_argument("data", f"{root / 'train'} alone", "a folder 'test' or 'val' beside it", fix)
        labels, names = label_map(
            sorted({*class_names(root / "train", "data"), *class_names(held_out, "data")}), num_classes
        )
        return labelled_samples(root / "train", labels), labelled_samples(held_out, labels), names
    if found := class_folders(root):
        labels, names = label_map(found, num_classes)
        samples = labelled_samples(root, labels)
    else:
        samples, names = [(file, -1) for file in files_in(root)], []
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
    )
