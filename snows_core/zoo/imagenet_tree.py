"""How ImageNet may lie on a disk: sorted into class folders, or as it comes, with a map from files to classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from snows_core.errors import SnowsError, invalid_argument
from snows_core.files.bounded import read_text
from snows_core.zoo.folder import Sample, imagenet_labels
from snows_core.zoo.tree import SUFFIXES, folder_names, index_tree

PARTS = ("train", "val")
PLACES = ("", "ILSVRC/Data/CLS-LOC")  # the second: as Kaggle packs it
MAPS = ("LOC_val_solution.csv", "val_map.txt")  # Kaggle's, and lines "<file> <WordNet id>"
MAP_BYTES = 256_000_000  # a line for each of 1.3 million images, with room for its boxes
SORTING = "https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh"


def check_layout(folder: Path) -> Path:
    """Return where ImageNet's train/ and val/ are, one of them or both; only a few entries are looked at.

    Args:
        folder: ``<root>/imagenet``.

    Returns:
        The folder that holds them.

    Raises:
        SnowsError: when there is neither, or images lie flat in one of them and nothing tells their classes.
    """
    for place in PLACES:
        tree = folder / place
        parts = [tree / part for part in PARTS if (tree / part).is_dir()]
        for part in parts:
            _refuse_flat(part, folder)
        if parts:
            return tree
    raise invalid_argument(
        "root",
        f"no folder {folder / 'train'} or {folder / 'val'}",
        f"{folder}/{{train,val}}/<wnid>/*.JPEG, or one of the two",
        "ImageNet needs registration: place (a part of) it there, or use 'imagenette', which needs none.",
    )


def wnid_samples(part: Path, folder: Path, progress: bool = True) -> list[tuple[str, str]]:
    """Return every image of train/ or val/ with its WordNet id: that of its class folder, else that of the map.

    Args:
        part: train/ or val/.
        folder: ``<root>/imagenet``, where the map lies.
        progress: whether a long walk shows a bar.

    Returns:
        (file, WordNet id) pairs in alphabetical order of the files.

    Raises:
        SnowsError: on a class folder that is no WordNet id, a file that the map does not name, or no images.
    """
    tree, known = index_tree(part, progress), imagenet_labels()
    for name in tree.classes:
        if name not in known:
            raise invalid_argument(
                "root",
                f"class folder '{name}' in {part}",
                "WordNet ids of ImageNet's 1,000 classes, such as n01440764",
                "Rename the folders, or use the data set 'folder:<path>' for classes of your own.",
            )
    if tree.classes:
        return [(file, name) for name, files in tree.classes.items() for file in files]
    if not tree.loose:
        raise invalid_argument("root", f"no images in {part}", "<wnid>/<image> files")
    wnids = class_map(folder)
    found = [(file, _wnid(file, wnids)) for file in tree.loose]
    unnamed = [file for file, wnid in found if wnid is None]
    if unnamed:
        raise _flat(part, folder, Path(unnamed[0]).name, len(unnamed))
    return sorted((file, wnid) for file, wnid in found if wnid is not None)


def labelled(samples: list[tuple[str, str]], label_of: dict[str, int]) -> list[Sample]:
    """Return the samples of :func:`wnid_samples` with labels for WordNet ids."""
    return [(file, label_of[wnid]) for file, wnid in samples]


def class_map(folder: Path) -> dict[str, str]:
    """Return the WordNet id of each file, by its name without ending, from LOC_val_solution.csv or val_map.txt.

    Args:
        folder: ``<root>/imagenet``; the file lies there or beside the images.

    Raises:
        SnowsError: on a file that cannot be read, or a line that names no WordNet id of ImageNet.
    """
    found: dict[str, str] = {}
    for path in _maps(folder):
        try:
            lines = read_text(path, MAP_BYTES).splitlines()
        except (OSError, ValueError) as error:
            raise SnowsError(f"root: {path} cannot be read ({error}). Correct the file, or remove it.") from error
        for number, line in enumerate(lines, 1):
            words = line.replace(",", " ").split()
            if not words or words[0] == "ImageId":  # the head of Kaggle's table
                continue
            if len(words) < 2 or words[1] not in imagenet_labels():
                raise SnowsError(
                    f"root: line {number} of {path} is '{line[:60]}'; expected a file's name and its WordNet id, as in"
                    " 'ILSVRC2012_val_00000001.JPEG n01751748'. Correct the line, or remove the file."
                )
            found[os.path.splitext(words[0])[0]] = words[1]
        if found:
            break
    return found


def _maps(folder: Path) -> Iterator[Path]:
    for name in MAPS:
        for place in (folder, *(folder / place / "val" for place in PLACES)):
            if (place / name).is_file():
                yield place / name


def _wnid(file: str, wnids: dict[str, str]) -> str | None:
    """Return what the map says, else the beginning of a name such as n01440764_18.JPEG."""
    stem = os.path.splitext(os.path.basename(file))[0]
    beginning = stem.split("_")[0]
    return wnids.get(stem) or (beginning if beginning in imagenet_labels() else None)


def _refuse_flat(part: Path, folder: Path) -> None:
    """Refuse images without class folders whose classes nothing tells; the first that is found is looked at."""
    if folder_names(part):
        return
    with os.scandir(part) as entries:
        name = next((entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES)), None)
    if name is not None and _wnid(name, class_map(folder)) is None:
        raise _flat(part, folder, name)


def _flat(part: Path, folder: Path, name: str, count: int | None = None) -> SnowsError:
    """Build the error for the original layout, with a recipe."""
    which = "" if count is None else f" and {count - 1:,} others" if count > 1 else ""
    return invalid_argument(
        "root",
        f"{part} as it comes, all images in one folder ({name}{which}), and nothing that tells their classes",
        f"{part}/<wnid>/*.JPEG, or a map from files to classes",
        f"Either put Kaggle's {MAPS[0]}, or a file {MAPS[1]} with lines '<file> <wnid>', into {folder}; or sort the"
        f" images into class folders, which the script {SORTING} does for val: cd {part} && curl -sO {SORTING} && sh"
        f" {SORTING.rsplit('/', 1)[1]}",
    )
