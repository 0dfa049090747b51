"""The folder of a comparison: written after each cell, each file whole or not at all, and read to go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from snows_core.comparison.cells import Cell
from snows_core.comparison.results import DONE, FIGURES, Comparison, Row
from snows_core.errors import SnowsError, cannot_go_on, invalid_argument
from snows_core.files import as_path, clean_leftovers, contents, try_to_write, write_text, write_whole
from snows_core.files.bounded import read_json

CSV, RECORD, IMAGES, FIGURE = "results.csv", "results.json", "per_image.safetensors", "comparison.png"
RECORD_BYTES = 64_000_000  # with a trace of every cell
_WORDS = {"weights": "dense weights", "calibration": "calibration images", "test": "test images"}


@dataclass(frozen=True)
class Output:
    """Where a comparison is written, and what the caller adds.

    Attributes:
        folder: new, empty, or with a comparison of the same configuration, whose finished cells are taken over.
        source: where network and images are from, for the record; JSON-ready.
        figure: draws the comparison into the PNG file of a path.
    """

    folder: str | Path
    source: Mapping[str, Any] = field(default_factory=dict)
    figure: Callable[[Comparison, Path], Any] | None = None

    def check(self) -> None:
        """Refuse a folder that cannot be written, or holds other things than a comparison.

        Raises:
            SnowsError: with the reason.
        """
        folder = as_path("out", self.folder, "the path of a folder")
        try:
            if folder.exists() and not folder.is_dir():
                raise invalid_argument("out", f"the file {folder}", "a folder")
            held = contents(folder) if folder.is_dir() else []
            if others := [name for name in held if name not in (CSV, RECORD, IMAGES, FIGURE)]:
                got = f"{folder}, which holds other files ({others[0]})"
                raise invalid_argument("out", got, "a new or empty folder, or one of a comparison")
            try_to_write(folder)
        except SnowsError:
            raise
        except (OSError, ValueError) as error:  # no file system takes some names
            got = f"{str(folder)!r}, which cannot be written ({getattr(error, 'strerror', None) or error})"
            raise invalid_argument("out", got, "a folder that can be made", "Choose another place.") from error

    def known(self, configuration: Mapping[str, Any]) -> tuple[dict[Cell, Row], list[Any]]:
        """Return the finished cells of an earlier call, and the provenance of its calls.

        Args:
            configuration: of this call, JSON-ready.

        Returns:
            Rows of the cells that are done, and a list of records; both empty where there is no comparison yet.

        Raises:
            SnowsError: when it was another comparison, naming the difference, or its files are damaged.
        """
        clean_leftovers(Path(self.folder))
        path = Path(self.folder) / RECORD
        if not path.is_file():
            return {}, []
        try:
            record = read_json(path, RECORD_BYTES)
            there, runs, rows = record["configuration"], record["runs"], record["cells"]
            images = load_file(Path(self.folder) / IMAGES)
            done = dict(_read_row(row, images) for row in rows if row["status"] == DONE)
        except Exception as error:  # whatever a library makes of a file that is not what it seems
            got = f"{self.folder}, whose files are damaged ({type(error).__name__}: {error})"
            raise cannot_go_on("out", got, "what a comparison wrote", "Choose another folder.") from error
        for name, here in configuration.items():
            if there.get(name) != here:
                got = f"{self.folder}, which holds a comparison with {_difference(name, there.get(name), here)}"
                raise invalid_argument("out", got, "a folder of the same comparison", "Choose another folder.")
        return done, runs

    def write(self, comparison: Comparison) -> None:
        """Write a ``comparison``: what is read to go on first, then tables and drawing."""
        folder = Path(self.folder)
        done = {cell: row for cell, row in comparison.rows.items() if row.status == DONE}
        tensors = {f"{cell}/{name}": values for cell, row in done.items() for name, values in row.values.items()}
        write_whole(folder / IMAGES, lambda path: save_file(tensors, path))
        frame = comparison.table
        cells = [_json_row(row) for row in frame.to_dict("records")]
        for cell, row in zip(cells, comparison.rows.values(), strict=True):
            cell |= {"trace": row.trace} if row.trace else {}
        record = {**comparison.record, "source": dict(self.source), "cells": cells}
        write_text(folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
        write_text(folder / CSV, frame.to_csv(index=False, lineterminator="\n"))
        draw = self.figure
        if draw is not None:
            write_whole(folder / FIGURE, lambda path: draw(comparison, path))


def _read_row(row: Mapping[str, Any], images: Mapping[str, Any]) -> tuple[Cell, Row]:
    cell = Cell(row["pattern"], row["mask"], row["update"])
    start = f"{cell}/"
    values = {name.removeprefix(start): found for name, found in images.items() if name.startswith(start)}
    if not values:
        raise ValueError(f"no images of {cell}")
    return cell, Row(DONE, figures={name: row[name] for name in FIGURES}, values=values)


def _json_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row of the table as JSON holds it: no NaN, no NA."""
    plain = {str(name): value if isinstance(value, str | bool) else _number(value) for name, value in row.items()}
    return {name: value for name, value in plain.items() if value not in (None, "")}


def _number(value: Any) -> Any:
    try:
        return value if math.isfinite(value) else None
    except TypeError:  # NA of pandas
        return None


def _difference(name: str, there: Any, here: Any) -> str:
    """Say what another comparison has in place of what was asked for."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        differing = [key for key in (*here, *there) if there.get(key) != here.get(key)]
        key = differing[0] if differing else name
        if name in ("settings", "recipe", "newton"):
            return _difference(key, there.get(key), here.get(key))
    if name in _WORDS:
        return f"other {_WORDS[name]}"
    return f"{name} {_shown(there)}, not {_shown(here)}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
