"""ImageNet as a folder tree, and Imagenette, ten of its classes that need no registration."""

from __future__ import annotations

from pathlib import Path

import torch

from snows_core.errors import invalid_argument
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.fetch import data_root, obtain_archive
from snows_core.zoo.folder import IMAGENET_MEAN, IMAGENET_STD, FolderImages, Sample, label_map
from snows_core.zoo.imagenet_tree import PARTS, check_layout, labelled, wnid_samples
from snows_core.zoo.preparation import Preparation, normalised

# The 320-pixel edition, as in torchvision.datasets.Imagenette(size="320px").
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"
IMAGENETTE_MD5 = "3df6f0d01a2c9592104656642f5e78a3"
IMAGENETTE_GB = 0.34  # of the archive, which stays beside what it holds
IMAGENETTE_DISK_GB = 0.7  # archive and images; profiles and notebooks say the same, and a test compares them
IMAGENETTE_FOLDERS = ("", "imagenette2-320", "imagenette2", "imagenette2-160")
SPLIT = 0  # seed of the permutation that divides train or val where the other one is missing
JUDGED = 50_000  # at most so many images of train are set aside for judging


def load_imagenet(name: str, root: str | Path | None, wanted: Preparation, download: bool = True) -> DataBundle:
    """Return ImageNet-1k or Imagenette with ImageNet's labels 0 to 999, so that a 1,000-class network is measured.

    "imagenet" is the tree ``<root>/imagenet/{train,val}/<wnid>/*`` (any part of the classes and images), or val as it
    comes with a map (see ``imagenet_tree``); it cannot be downloaded without registration. "imagenette" is downloaded
    the first time to ``<root>/imagenette``. Where only one of train and val is there, its images are divided by a
    seeded permutation: a fifth of val for calibration, or a fifth of train for judging.
    A network of as many classes as there are folders gets labels in alphabetical order.
    Sources: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015;
    J. Howard, Imagenette, 2019.

    Args:
        name: "imagenet" or "imagenette".
        root: folder of all data sets; see ``data_root``.
        wanted: mean and std of three values, default ImageNet's; images are 224 high and wide by default.
        download: whether the network may be used.

    Raises:
        SnowsError: on a missing tree, images without classes, folders that are no WordNet ids, grey images, or no
            network.
    """
    mean, std = wanted.moments((IMAGENET_MEAN, IMAGENET_STD))
    size = wanted.image_size or 224
    shape = (len(mean), size, size)
    transform = wanted.transform or normalised(size, mean, std)
    folder = data_root(root) / name
    tree = check_layout(folder) if name == "imagenet" else _imagenette_tree(folder, download)
    parts = {part: wnid_samples(tree / part, folder, wanted.progress) for part in PARTS if (tree / part).is_dir()}
    labels, classes = label_map(sorted({wnid for part in parts.values() for _, wnid in part}), wanted.num_classes)
    train, test, words = _divided({part: labelled(found, labels) for part, found in parts.items()}, tree)
    sets = [Split(FolderImages(samples, transform, shape)) for samples in (train, test)]
    return DataBundle(name, sets[0], sets[1], classes, shape, mean, std, words, held_out="val" in parts)


def _divided(parts: dict[str, list[Sample]], tree: Path) -> tuple[list[Sample], list[Sample], str]:
    """Return images to calibrate on and images to judge on, none in both, and in words how they were divided."""
    if len(parts) == len(PARTS):
        train, test = (parts[part] for part in PARTS)
        return train, test, f"image-folder tree with {len(train):,} training and {len(test):,} test images"
    ((part, samples),) = parts.items()
    if len(samples) < 2:
        raise invalid_argument(
            "root", f"{len(samples)} image in {tree / part}", "at least 2, one to calibrate on and one to judge on"
        )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SPLIT)).tolist()
    fifth = max(1, len(samples) // 5)
    cut = fifth if part == "val" else len(samples) - min(fifth, JUDGED)
    train, test = ([samples[i] for i in sorted(chosen)] for chosen in (order[:cut], order[cut:]))
    words = (
        f"{part} alone of {tree}, divided by a permutation of seed {SPLIT}: {len(train):,} images to calibrate on,"
        f" {len(test):,} others to judge on"
    )
    return train, test, words


def _imagenette_tree(folder: Path, download: bool) -> Path:
    for part in IMAGENETTE_FOLDERS:
        if any((folder / part / name).is_dir() for name in PARTS):
            return folder / part
    archive = IMAGENETTE_URL.rsplit("/", 1)[1]
    return obtain_archive(archive, (IMAGENETTE_URL,), IMAGENETTE_MD5, folder, "imagenette2-320", download=download)
