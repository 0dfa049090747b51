"""ImageNet as a folder tree, and Imagenette, ten of its classes that need no registration."""

from __future__ import annotations

from pathlib import Path

from snows_core.errors import invalid_argument
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.fetch import data_root, obtain_archive
from snows_core.zoo.folder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FolderImages,
    class_names,
    imagenet_labels,
    label_map,
    labelled_samples,
)
from snows_core.zoo.preparation import Preparation, normalised

# The 320-pixel edition, as in torchvision.datasets.Imagenette(size="320px").
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"
IMAGENETTE_MD5 = "3df6f0d01a2c9592104656642f5e78a3"
IMAGENETTE_FOLDERS = ("", "imagenette2-320", "imagenette2", "imagenette2-160")


def load_imagenet(name: str, root: str | Path | None, wanted: Preparation, download: bool = True) -> DataBundle:
    """Return ImageNet-1k or Imagenette with ImageNet's labels 0 to 999, so that a 1,000-class network is measured.

    "imagenet" is the tree ``<root>/imagenet/{train,val}/<wnid>/*`` (any part of the classes and images); it cannot be
    downloaded without registration. "imagenette" is downloaded the first time to ``<root>/imagenette``.
    Sources: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015;
    J. Howard, Imagenette, 2019.

    Args:
        name: "imagenet" or "imagenette".
        root: folder of all data sets; see ``data_root``.
        wanted: mean and std of three values, default ImageNet's; images are 224 high and wide by default.
        download: whether the network may be used.

    Raises:
        SnowsError: on a missing tree, class folders that are no WordNet ids, grey images, or no network.
    """
    mean, std = wanted.moments((IMAGENET_MEAN, IMAGENET_STD))
    size = wanted.image_size or 224
    shape = (len(mean), size, size)
    transform = wanted.transform or normalised(size, mean, std)
    folder = data_root(root) / name
    tree = _imagenet_tree(folder) if name == "imagenet" else _imagenette_tree(folder, download)
    parts = [tree / "train", tree / "val"]
    known, found = imagenet_labels(), [class_names(part) for part in parts]
    for part, names in zip(parts, found, strict=True):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise invalid_argument(
                "root",
                f"class folder '{unknown[0]}' in {part}",
                "WordNet ids of ImageNet's 1,000 classes, such as n01440764",
                "Rename the folders, or use the data set 'folder:<path>' for classes of your own.",
            )
    labels, classes = label_map(sorted({*found[0], *found[1]}), wanted.num_classes)
    splits = [Split(FolderImages(labelled_samples(part, labels), transform, shape)) for part in parts]
    words = f"image-folder tree with {len(splits[0]):,} training and {len(splits[1]):,} test images"
    train, test = splits
    return DataBundle(name, train, test, classes, shape, mean, std, words)


def _imagenet_tree(folder: Path) -> Path:
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise invalid_argument(
                "root",
                f"no folder {folder / part}",
                f"{folder}/{{train,val}}/<wnid>/*.JPEG",
                "ImageNet needs registration: place (a part of) it there, or use 'imagenette', which needs none.",
            )
    return folder


def _imagenette_tree(folder: Path, download: bool) -> Path:
    for part in IMAGENETTE_FOLDERS:
        if (folder / part / "train").is_dir():
            return folder / part
    archive = IMAGENETTE_URL.rsplit("/", 1)[1]
    return obtain_archive(archive, (IMAGENETTE_URL,), IMAGENETTE_MD5, folder, "imagenette2-320", download=download)
