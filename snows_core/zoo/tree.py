"""Which images lie in a folder: each tree is walked once a process, and again only where a folder has changed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")  # folders of archivers, servers and desktops
SHOWN_AFTER = 2  # seconds of walking after which a bar appears
COARSE_NS = 2_000_000_000  # a folder that changed so shortly before it was walked may have changed again unnoticed
KEPT = 8  # trees that are remembered


@dataclass
class Tree:
    """The images of a folder; hidden files and folders are left out.

    Attributes:
        loose: image files in the folder itself, in alphabetical order.
        classes: image files at any depth below each of its folders, by the folder's name, both in alphabetical order;
            folders without images are left out.
        changed: when each folder that was walked had last changed, in nanoseconds.
        walked: when the walk began, likewise.
    """

    loose: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    walked: int = field(default_factory=time.time_ns)

    def files(self) -> list[str]:
        """Return all image files in alphabetical order, folder by folder."""
        return _in_order([*self.loose, *(file for files in self.classes.values() for file in files)])

    def is_current(self) -> bool:
        """Tell whether no folder has changed since the walk, as far as clocks of file systems can tell."""
        if max(self.changed.values()) > self.walked - COARSE_NS:
            return False
        try:
            return all(os.stat(folder).st_mtime_ns == when for folder, when in self.changed.items())
        except OSError:
            return False


_KNOWN: dict[tuple[str, str], Tree] = {}


def index_tree(folder: Path, progress: bool = True) -> Tree:
    """Return the images of a folder; a folder that this process has seen is not walked again unless it has changed.

    Args:
        folder: the tree.
        progress: whether a walk of more than two seconds shows a bar.

    Returns:
        The tree; paths begin with the folder as it was given.
    """
    key = str(folder), os.path.abspath(folder)
    if key in _KNOWN and _KNOWN[key].is_current():
        return _KNOWN[key]
    _KNOWN.pop(key, None)
    while len(_KNOWN) >= KEPT:
        del _KNOWN[next(iter(_KNOWN))]
    _KNOWN[key] = _walk(str(folder), progress)
    return _KNOWN[key]


def folder_names(folder: Path) -> list[str]:
    """Return the names of the folders in a folder in alphabetical order, without hidden ones; no deeper look."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))


def _walk(root: str, progress: bool) -> Tree:
    tree, names = Tree(), []
    tree.changed[root] = os.stat(root).st_mtime_ns
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir() and not _is_hidden(entry.name):
                names.append(entry.name)
            elif _is_image(entry):
                tree.loose.append(entry.path)
    tree.loose = _in_order(tree.loose)
    title = f"indexing {root}"
    for name in tqdm(sorted(names), title, unit="folder", delay=SHOWN_AFTER, leave=False, disable=not progress):
        if files := _in_order(list(_files_below(os.path.join(root, name), tree.changed))):
            tree.classes[name] = files
    return tree


def _files_below(folder: str, changed: dict[str, int]) -> Iterator[str]:
    """Yield the image files at any depth, and note when each folder had changed; links to folders are not followed."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(PermissionError):  # such as lost+found
            changed[place] = os.stat(place).st_mtime_ns
            with os.scandir(place) as entries:
                for entry in entries:
                    if _is_image(entry):
                        yield entry.path
                    elif entry.is_dir(follow_symlinks=False) and not _is_hidden(entry.name):
                        waiting.append(entry.path)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not _is_hidden(entry.name) and entry.is_file()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _in_order(files: list[str]) -> list[str]:
    return sorted(files, key=lambda file: file.split(os.sep))
