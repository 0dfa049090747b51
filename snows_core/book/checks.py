"""What must hold before a notebook runs and after it ran; papermill itself checks none of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snows_core.book.contents import Content, Recorded
from snows_core.book.schemas import by_schema
from snows_core.errors import SnowsError, cannot_go_on, closest, invalid_argument
from snows_core.files.bounded import NOTEBOOK_BYTES, read_json

KERNEL = "python3"
NUMBERED = re.compile(r"\d\d[a-z]?_")
_SLACK_S = 1.0  # clocks of file systems are coarse


@dataclass(frozen=True)
class Notebook:
    """A notebook of the book.

    Attributes:
        path: the file.
        cells: its cells, as stored.
        kernel: name of its kernel, or "".
    """

    path: Path
    cells: tuple[dict[str, Any], ...]
    kernel: str

    @property
    def stem(self) -> str:
        """File name without its ending: the notebook's name everywhere."""
        return self.path.stem

    @property
    def number(self) -> str:
        """What its name begins with: two digits, and a letter where it continues another one, as in "02b"."""
        return self.stem.split("_")[0]

    def tagged(self, tag: str) -> list[int]:
        """Return the positions of the cells with a tag."""
        return [i for i, cell in enumerate(self.cells) if tag in cell.get("metadata", {}).get("tags", [])]


def read_notebook(path: Path) -> Notebook:
    """Read a notebook file.

    Returns:
        The notebook.

    Raises:
        SnowsError: when the file is missing or no notebook.
    """
    try:
        content = by_schema(
            read_json(path, NOTEBOOK_BYTES), Content, path.name, "cells and metadata as Jupyter has them"
        )
    except (OSError, ValueError) as error:  # a SnowsError is a ValueError, too
        raise cannot_go_on(
            "notebook", f"'{path}', which cannot be read ({error})", "a Jupyter notebook, format 4"
        ) from error
    cells = tuple(cell.model_dump() for cell in content.cells)
    return Notebook(path, cells, content.metadata.kernelspec.name)


def find_notebooks(folder: Path, names: Iterable[str] = ()) -> list[Notebook]:
    """Return the numbered notebooks of a folder in reading order.

    Args:
        folder: where ``01_....ipynb`` and so on stand.
        names: which of them: a number ("3", "03", or "02b" for the second part of 02), or a name; none means all.

    Returns:
        The notebooks, read.

    Raises:
        SnowsError: when there are none, or a name fits none.
    """
    paths = sorted(p for p in folder.glob("*.ipynb") if NUMBERED.match(p.name)) if folder.is_dir() else []
    if not paths:
        raise invalid_argument(
            "notebooks",
            f"'{folder}', which has no NN_title.ipynb",
            "the folder notebooks/ of a clone",
            "Work in a clone that is installed with `pip install -e .`, or pass --notebooks DIR.",
        )
    chosen = []
    for name in names:
        wanted = Path(name).name.removesuffix(".ipynb")
        fits = [p for p in paths if p.stem == wanted or p.stem.split("_")[0] in (wanted, f"0{wanted}")]
        if not fits:
            stems = [p.stem for p in paths]
            raise invalid_argument("notebook", f"'{name}'", f"one of {', '.join(stems)}", closest(name, stems))
        chosen += fits
    return [read_notebook(path) for path in sorted(set(chosen or paths))]


def declared_parameters(notebook: Notebook) -> dict[str, Any]:
    """Return the names and default values of a notebook's parameters.

    The cell tagged ``parameters`` holds nothing but ``name = literal`` (a type annotation is allowed), so what runs by
    default can be read without running it.

    Returns:
        Default values by name.

    Raises:
        SnowsError: when there is not exactly one such cell, or it holds anything else.
    """
    found = notebook.tagged("parameters")
    if len(found) != 1:
        raise invalid_argument(f"{notebook.stem}", f"{len(found)} cells tagged 'parameters'", "exactly one")
    source = notebook.cells[found[0]]["source"]
    place = f"{notebook.stem}, cell {found[0] + 1} (parameters)"
    values: dict[str, Any] = {}
    try:
        body = ast.parse(source if isinstance(source, str) else "".join(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deep
        line = getattr(error, "lineno", None) or 1
        raise invalid_argument(place, f"line {line}, which is no Python", "assignments of literals") from error
    for line in body:
        single = isinstance(line, ast.Assign) and len(line.targets) == 1
        statement: Any = line
        target: Any = statement.targets[0] if single else getattr(statement, "target", None)
        try:
            values[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise invalid_argument(
                place, f"'{ast.unparse(line)}'", "name = literal", "Move the line to the next cell."
            ) from error
    return values


def check_before(notebook: Notebook, parameters: dict[str, Any]) -> None:
    """Refuse to run a notebook with another kernel, without declared parameters, or with parameters it does not have.

    Args:
        notebook: the notebook.
        parameters: what would be injected.

    Raises:
        SnowsError: on the first that does not hold.
    """
    if notebook.kernel != KERNEL:
        raise invalid_argument(
            f"{notebook.stem}: kernel", f"'{notebook.kernel}'", f"'{KERNEL}'", "Save it with the default kernel."
        )
    declared = declared_parameters(notebook)
    if "profile" not in declared:
        raise invalid_argument(
            f"{notebook.stem}: parameters", ", ".join(declared) or "none", 'profile = "digits" among them'
        )
    for name in parameters:
        if name not in declared:
            raise invalid_argument(
                f"{notebook.stem}: parameters",
                f"'{name}', which the notebook does not have",
                f"some of {', '.join(declared)}",
                closest(name, declared),
            )


def check_after(folder: Path, stem: str, profile: str, started: float) -> dict[str, Any]:
    """Assert that a run left its metrics and every figure it lists, and that this very run wrote them.

    Args:
        folder: where the notebook writes.
        stem: the notebook's name.
        profile: the profile that ran.
        started: time of the start in seconds since the epoch.

    Returns:
        The content of metrics.json.

    Raises:
        SnowsError: when a file is missing or older than the start, no figure is listed, or the record is another's.
    """
    path = folder / "metrics.json"
    _fresh(path, started)
    expected = "what NotebookOutputs.save_metrics writes"
    try:
        record = by_schema(read_json(path), Recorded, path.name, expected).model_dump()
    except (OSError, ValueError) as error:
        raise invalid_argument(str(path), f"a record that cannot be read ({error})", expected) from error
    owner, figures, metrics = (record["notebook"], record["profile"]), record["figures"], record["metrics"]
    if owner != (stem, profile):
        raise invalid_argument(
            str(path), f"a record of {owner[0]}, profile {owner[1]}", f"one of {stem}, profile {profile}"
        )
    if not figures or not metrics:
        raise invalid_argument(str(path), f"figures {figures} and metrics {metrics}", "at least one of each")
    for name in figures:
        _fresh(folder / name, started)
    return record


def _fresh(path: Path, started: float) -> None:
    if not path.is_file():
        raise SnowsError(f"{path.name}: the notebook ended without writing it; expected {path}.")
    if path.stat().st_mtime < started - _SLACK_S:
        raise SnowsError(f"{path.name}: older than the run, so another run wrote it; expected a fresh {path}.")
