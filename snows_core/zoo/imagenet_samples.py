"""A thousand ImageNet images, one of each class: half to calibrate on, half to judge on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from snows_core.errors import SnowsError
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.fetch import data_root, obtain_archive
from snows_core.zoo.folder import FolderImages, files_in, imagenet_classes, imagenet_labels
from snows_core.zoo.preparation import Preparation, normalised

COMMIT = "bc69043e2862758a1906c6a24a792bb28c6bb2ff"
CONTENTS = f"imagenet-sample-images-{COMMIT}"
URL = f"https://github.com/EliSchwartz/imagenet-sample-images/archive/{COMMIT}.tar.gz"
SHA256 = "206ae630c3e02bd01c4578ac69466c642a55690461a806ec78c0fd035df9ee0e"  # see ``fingerprint``
IMAGES = 1000
SPLIT = 0  # seed of the permutation that divides them
HALF = (0.5,) * 3  # mean and std that the networks for these images expect


def load_imagenet_samples(name: str, root: str | Path | None, wanted: Preparation, download: bool = True) -> DataBundle:
    """Return the images of github.com/EliSchwartz/imagenet-sample-images, one of each of ImageNet's classes.

    Read from ``<root>/imagenet-samples``, where they lie as files or as the archive of one commit, which is downloaded
    the first time. Names and contents are verified at every load. The split is fixed: of a seeded permutation of their
    names in alphabetical order, which is that of the labels, the first 500 images are for calibration and the others
    for judging. The networks were likely trained on them: judge by agreement and KL rather than by accuracy.

    Args:
        name: "imagenet-samples".
        root: folder of all data sets; see ``data_root``.
        wanted: mean and std of three values, default 0.5 and 0.5; images are 224 high and wide by default.
        download: whether the network may be used.

    Raises:
        SnowsError: on a missing root, other images than these, or no network.
    """
    mean, std = wanted.moments((HALF, HALF))
    size = wanted.image_size or 224
    shape = (len(mean), size, size)
    transform = wanted.transform or normalised(size, mean, std)
    folder = data_root(root) / name
    if folder.is_dir() and next(folder.glob("n*.JPEG"), None):
        _check(folder)
    else:
        archive = f"{CONTENTS}.tar.gz"
        folder = obtain_archive(archive, (URL,), None, folder, CONTENTS, download=download, check=_check)
        _check(folder)
    labels = imagenet_labels()
    samples = [(path, labels[path.name.split("_")[0]]) for path in files_in(folder)]
    images = FolderImages(samples, transform, shape)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SPLIT)).tolist()
    half = len(samples) // 2
    train, test = Split(images, order[:half]), Split(images, order[half:])
    words = f"{len(samples):,} images of {URL}, halved by a permutation of seed {SPLIT}"
    return DataBundle(name, train, test, imagenet_classes(), shape, mean, std, words)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of names and SHA-256s of the images in a folder, in the order of their names."""
    found = hashlib.sha256()
    for path in files_in(folder):
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _check(folder: Path) -> None:
    """Refuse a folder that does not hold exactly these images."""
    count, found = len(files_in(folder)), fingerprint(folder)
    if found != SHA256:
        raise SnowsError(
            f"root: {folder} holds {count:,} images with the checksum {found[:16]}; expected the {IMAGES:,} of {URL}"
            f" ({SHA256[:16]}). Delete them and run again to download them anew, or use folder:<path> for others."
        )
