"""Images in folders: one folder a class, or a flat folder without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from snows_core.errors import invalid_argument
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.image_modes import GREY_MODES, mode_of, read_image
from snows_core.zoo.preparation import Preparation, normalised
from snows_core.zoo.tree import SUFFIXES, folder_names, index_tree
from snows_core.zoo.unreadable import Unreadable, UnreadableImage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JUDGING = ("test", "val", "valid", "validation")  # folders of images to judge on, the first that is there
PARTS = ("train", *JUDGING)
TEST_SHARE = 0.2  # of the images of a folder that nobody has divided
Sample = tuple[str | Path, int]  # texts: a million paths take several times the memory


@dataclass(frozen=True)
class Divided:
    """A folder's images in two parts.

    Attributes:
        train: to calibrate on.
        test: to judge on; none of them is in ``train``.
        names: of the classes, in label order; empty where there are no labels.
        words: how the folder was divided.
        held_out: whether the images to judge on were kept from training, as far as names of folders tell.
    """

    train: list[Sample]
    test: list[Sample]
    names: list[str]
    words: str
    held_out: bool = True


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


def load_own_folder(name: str, root: str | Path | None, wanted: Preparation, download: bool = True) -> DataBundle:
    """Return the user's own images, named ``folder:<path>``.

    ``<path>/train/<class>/*`` with ``<path>/test`` or ``<path>/val`` beside it is used as it is divided, and so are val
    and test without train; val may also be called valid or validation. In ``<path>/<class>/*`` every fifth image is set
    aside for testing, and so it is where there is only one of these parts, and in a flat ``<path>/*`` without labels;
    ``wanted.test_share`` sets another share of these aside. Images of a ``train`` alone are not held out from training.
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
    divided = _divided(folder, wanted)
    sets = [FolderImages(samples, transform, shape) for samples in (divided.train, divided.test)]
    first, second = (Split(images, labelled=images.labelled) for images in sets)
    return DataBundle(name, first, second, divided.names, shape, mean, std, divided.words, divided.held_out)


def _folder(path: str) -> Path | None:
    """Return the folder of a path as it was typed, or None where there is none."""
    try:
        folder = Path(path).expanduser()
        return folder if path.strip() and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a home of nobody's, a null character
        return None


def _divided(root: Path, wanted: Preparation) -> Divided:
    """Divide a folder into images to calibrate on and images to judge on, none in both."""
    folders = folder_names(root)
    judging = [name for name in JUDGING if name in folders]
    if judging and ("train" in folders or (len(judging) > 1 and set(folders) == {*judging})):
        return _as_divided(root, "train" if "train" in folders else judging[1], judging[0], wanted)
    part = folders if len(folders) == 1 else list(index_tree(root, wanted.progress).classes)
    alone = part[0] if len(part) == 1 and part[0] in PARTS else ""  # one part of a division, or "" for a class tree
    return _spread(root / alone, wanted, held_out=alone != "train")


def _as_divided(root: Path, calibrating: str, judging: str, wanted: Preparation) -> Divided:
    """Return the parts of a folder that is divided already; they stay as they are."""
    parts = root / calibrating, root / judging
    found = sorted({name for part in parts for name in class_names(part, "data", wanted.progress)})
    labels, names = label_map(found, wanted.num_classes)
    train, test = (labelled_samples(part, labels, wanted.progress) for part in parts)
    return Divided(train, test, names, f"image files in {root}, as divided into {calibrating} and {judging}")


def _spread(root: Path, wanted: Preparation, held_out: bool) -> Divided:
    """Set images aside for testing at equal distances, so that each class gives its share."""
    tree = index_tree(root, wanted.progress)
    samples: list[Sample]
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
    share = Fraction(str(float(TEST_SHARE if wanted.test_share is None else wanted.test_share)))  # 0.2 is a fifth
    places = [math.ceil(i * share) for i in range(len(samples) + 1)]  # rises by one where an image is set aside
    test = [sample for sample, low, high in zip(samples, places, places[1:], strict=False) if high > low]
    train = [sample for sample, low, high in zip(samples, places, places[1:], strict=False) if high == low]
    if not train:
        expected = f"a share that leaves one of {len(samples)} images to calibrate on"
        raise invalid_argument("test_share", wanted.test_share, expected)
    every = "every fifth" if share == Fraction(1, 5) else f"{len(test):,}"
    return Divided(train, test, names, f"image files in {root}, {every} of them set aside for testing", held_out)
