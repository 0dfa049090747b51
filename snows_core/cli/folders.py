"""Folders as they are typed."""

from __future__ import annotations

from pathlib import Path

import typer


def home_expanded(path: Path | None) -> Path | None:
    """Read a leading ~ as the home folder: no shell does so in ``--out=~/pruned``."""
    try:
        return None if path is None else path.expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(f"got {path}; expected a folder of a user that this machine has") from error


def existing_folder(path: Path | None) -> Path | None:
    """Refuse a folder that is not there, also where the data that were asked for need none."""
    path = home_expanded(path)
    try:
        there = path is None or path.is_dir()
    except OSError:  # a name that no file system takes
        there = False
    if not there:
        raise typer.BadParameter(f"got {str(path)[:200]!r}, which is no folder; expected an existing one")
    return path
