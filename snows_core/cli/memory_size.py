"""Sizes of memory as people write them: 2e9, 500MB, 1.5GiB, or 0.5 of what is free."""

from __future__ import annotations

import math
import re

import typer

_UNITS = ("", "k", "m", "g", "t", "p", "e")  # each 1000 times the one before, or 1024 times as in GiB
_LONGEST = 40  # signs that a size may have
_BYTES = re.compile(
    r"\s*(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>[kmgtpe]?)(?P<binary>(?<=[kmgtpe])i(?=b))?b?\s*", re.IGNORECASE
)


def parse_memory(text: str) -> float:
    """Read bytes (2e9), bytes with a unit (500MB, 3GB, 1.5GiB), or a fraction of what is free (0.5).

    Returns:
        Bytes, or a fraction below 1.

    Raises:
        BadParameter: on anything else.

    >>> parse_memory("500MB"), parse_memory("1.5GiB"), parse_memory("0.5")
    (500000000, 1610612736, 0.5)
    """
    size = math.nan
    if len(text) <= _LONGEST:
        try:
            size = float(text)
        except ValueError:
            found = _BYTES.fullmatch(text)
            base = 1024 if found and found["binary"] else 1000
            size = int(float(found["number"]) * base ** _UNITS.index(found["unit"].lower())) if found else math.nan
    if not (math.isfinite(size) and size > 0):
        expected = "bytes as 2e9, 500MB or 3GB, or a fraction of the free memory as 0.5"
        raise typer.BadParameter(f"got {text[:_LONGEST]!r}; expected {expected}")
    return size
