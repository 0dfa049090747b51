"""Texts and JSON that others wrote: the size is bounded before a file is read, the depth before it is parsed.

A manifest, a notebook or a profile may come from anywhere. Each reader here takes ordinary files alone (a pipe or a
device could go on for ever), of bounded size, in UTF-8, and raises ``ValueError`` with one line that says what is
wrong; callers name the argument. YAML is read with the same bounds where its library is, in ``book.schemas``.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

MANIFEST_BYTES = 16_000_000  # a manifest has a few bytes a calibration image, and names of layers
NOTEBOOK_BYTES = 64_000_000  # with its pictures
DEEPEST = 60  # levels; what this package writes has eight
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)  # or a whole string


def check_file(path: Path, most: int | None = None) -> Path:
    """Refuse what is no ordinary file, or a larger one than is expected, without opening it.

    Args:
        path: the file.
        most: bytes that it may have; None for any number.

    Returns:
        The path.

    Raises:
        OSError: when there is no such file.
        ValueError: with the reason.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no ordinary file")
    if most is not None and found.st_size > most:
        raise ValueError(f"{found.st_size:,} bytes, where at most {most:,} can be meant")
    return path


def read_text(path: Path, most: int) -> str:
    """Return the text of an ordinary file in UTF-8 of at most ``most`` bytes; a byte order mark is left out.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is no such file.
    """
    with check_file(path).open("rb") as file:
        content = file.read(most + 1)  # it may have grown, and some file systems tell no size
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 text: byte {error.object[error.start]:#x} at {error.start}") from None


def read_json(path: Path, most: int = MANIFEST_BYTES) -> Any:
    """Return what a JSON file holds.

    Args:
        path: an ordinary file in UTF-8.
        most: bytes that it may have.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is no such file, no JSON, or nested deeper than ``DEEPEST``.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Return what a JSON text of bounded length holds.

    Raises:
        ValueError: when it is no JSON, or nested deeper than ``DEEPEST``.

    >>> parse_json('{"pattern": "2:4"}')
    {'pattern': '2:4'}
    """
    if _depth(text) > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} in line {error.lineno}") from None
    except ValueError:  # a number of thousands of digits
        raise ValueError("a number that is too long") from None


def _depth(text: str) -> int:
    """Return how deep brackets of a JSON text are nested, those in its strings left aside; nothing here recurses.

    >>> _depth('[{"a": "[[[["}, 1]')
    2
    """
    deepest = depth = 0
    for found in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        deepest = max(deepest, depth)
        if deepest > DEEPEST:
            break
    return deepest
