"""Files and folders that are written whole or not at all, whatever kills the process."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

from snows_core.errors import invalid_argument

LEFTOVER = ".snows-"
"""Begins the names of what is removed after use, and stays only when a process is killed."""
_PROBE_BYTES = 65536


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; a reader never sees half a file.

    What was renamed is on the disk: neither a kill nor a power cut leaves an empty file in its place.

    The file has the mode that the user's umask gives to new files, whatever ``write`` makes of it: some writers make
    private files.

    Args:
        path: the file to make or replace; its folder is made where missing.
        write: called with the temporary path, whose suffix is that of ``path``.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{LEFTOVER}{secrets.token_hex(8)}{path.suffix}"
    try:
        mode = _make_file(temporary)
        write(temporary)
        temporary.chmod(mode)
        _to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _to_disk(path.parent)
    return path


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; where a system syncs no folders, leave them."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text into the file ``path`` in UTF-8, whole or not at all; see :func:`write_whole`."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _make_file(path: Path) -> int:
    """Make an empty file that was not there, and return its mode: the one that the user's umask gives to new files."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return stat.S_IMODE(path.stat().st_mode)


def try_to_write(folder: Path) -> None:
    """Make a folder with a file in it and take both away again.

    Args:
        folder: new or existing; missing parents are made and removed likewise.

    Raises:
        OSError: when it cannot be made or written into.
        ValueError: when no file system takes such a name.
    """
    if "\0" in str(folder):
        raise ValueError("a name with a null character")
    whole = Path(os.path.abspath(folder))
    missing = list(takewhile(lambda path: not os.path.isdir(path), (whole, *whole.parents)))
    made: list[Path] = []
    try:
        for path in reversed(missing):
            if os.path.lexists(path):
                raise NotADirectoryError(errno.ENOTDIR, f"{path} is no folder")
            path.mkdir()
            made.append(path)
        with tempfile.NamedTemporaryFile(dir=whole, prefix=LEFTOVER) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
    finally:
        for path in reversed(made):
            path.rmdir()


def as_path(argument: str, path: object, expected: str) -> Path:
    """Return a path that a caller gave.

    Args:
        argument: its name, for the message.
        path: what came.
        expected: what it would have to be.

    Raises:
        SnowsError: on what is no path, and on an empty text: the current folder is ".".
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise invalid_argument(argument, f"a {type(path).__name__}" if path != "" else "''", expected)
    return Path(path)


def is_file(path: str | Path) -> bool:
    """Tell whether ``path`` is a file; no file system takes some names, and then there is none."""
    try:
        return Path(path).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long, with a null character, of no such user
        return False


def contents(folder: Path) -> list[str]:
    """Return the names of what a folder holds, without what a killed process may have left there."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(LEFTOVER))


def _start(name: str) -> str:
    """Return how the temporary copies of a folder begin, whatever the length of its name."""
    return f"{LEFTOVER}{name[:100]}-"


def clean_leftovers(folder: Path, of: str = "") -> None:
    """Remove what a killed process has left in a folder that nobody else is writing into.

    Args:
        folder: the folder; may be missing.
        of: name of a folder inside, of which alone temporary copies are removed.
    """
    if not folder.is_dir():
        return
    start = _start(of) if of else LEFTOVER
    for name in (name for name in os.listdir(folder) if name.startswith(start)):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def fill_folder(folder: Path, write: Callable[[Path], None], seal: str) -> None:
    """Let ``write`` fill a folder: all its files appear there, or none, and they have the mode of the user's umask.

    A new folder is filled under another name and renamed. In a folder that exists (which may be a mounted one, or stand
    in one that is not ours) the files are exchanged one by one, and put back when that fails.

    Args:
        folder: new, empty, or with files of the same names, which are replaced.
        write: called with an empty folder, to be filled with files.
        seal: the file without which a reader takes the others for nothing; it goes first and comes last.

    Raises:
        OSError: when the files cannot be written; the folder is as it was then.
    """
    folder = Path(os.path.abspath(folder))
    there = folder.is_dir()
    base = folder if there else folder.parent
    base.mkdir(parents=True, exist_ok=True)
    recover(folder, seal)
    with tempfile.TemporaryDirectory(dir=base, prefix=_start(folder.name)) as name:
        new = Path(name) / "new"
        new.mkdir()
        write(new)
        _give_usual_mode(new)
        for path in new.iterdir():
            _to_disk(path)
        if there:
            _exchange(new, folder, Path(name) / "old", seal)
        else:
            new.rename(folder)
        _to_disk(base)


def recover(folder: Path, seal: str) -> None:
    """Put right what :func:`fill_folder` has left when it was killed: old files come back, temporary ones go.

    Args:
        folder: what it was to fill.
        seal: see there.
    """
    folder = Path(os.path.abspath(folder))
    if folder.is_dir() and not (folder / seal).exists():
        for old in sorted(folder.glob(f"{glob.escape(_start(folder.name))}*/old")):
            if (old / seal).exists():
                for path in sorted(old.iterdir(), key=lambda path: path.name == seal):
                    path.replace(folder / path.name)
    for place in (folder, folder.parent):
        clean_leftovers(place, folder.name)


def _give_usual_mode(folder: Path) -> None:
    """Give all files in a folder the mode of a file that is made in the usual way: some writers make private ones."""
    usual = folder / f"{LEFTOVER}mode"
    mode = _make_file(usual)
    usual.unlink()
    for path in folder.iterdir():
        path.chmod(mode)


def _exchange(new: Path, folder: Path, old: Path, seal: str) -> None:
    old.mkdir()
    names = sorted(os.listdir(new), key=lambda name: (name == seal, name))
    try:
        for name in reversed(names):
            if (folder / name).exists():
                (folder / name).rename(old / name)
        for name in names:
            (new / name).rename(folder / name)
    except BaseException:
        for name in names:
            if (old / name).exists():
                (old / name).replace(folder / name)
            elif not (new / name).exists():  # it had no predecessor and is in its place already
                (folder / name).unlink(missing_ok=True)
        raise
