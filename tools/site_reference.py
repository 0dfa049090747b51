"""Pages of the API reference, one a room, as Sphinx's autodoc reads them; docstrings are where their words stand.

A name that several rooms make public is described once, where most users meet it, and the others lead there.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docstrings import PACKAGE, constant_docstring, public_functions, public_modules

_SHAPE = re.compile(r"(?<=[(, ])\*(?=\w+[),])")  # (out, in, *kernel)


def escape_shapes(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep the star of a shape such as (out, in, *kernel), which is the sign of emphasis in a docstring's markup."""
    lines[:] = [_SHAPE.sub(r"\\*", line) for line in lines]


def shown_modules() -> dict[str, tuple[ModuleType, list[str]]]:
    """Return name to module and public names of each page: the rooms, and the files that a room makes public."""
    rooms = public_modules()
    shown = {name: (module, list(module.__all__)) for name, module in rooms.items()}
    for module in rooms.values():
        for value in (getattr(module, name) for name in module.__all__):
            if inspect.ismodule(value):
                shown.setdefault(value.__name__, (value, public_functions(value)))
    return dict(sorted(shown.items()))


def described(module: ModuleType, name: str) -> str:
    """Return what autodoc, or for a constant Sphinx itself, needs to describe one public name."""
    value, place = getattr(module, name), f"{module.__name__}.{name}"
    if inspect.ismodule(value):
        return f"* :doc:`{value.__name__}`\n"
    if inspect.isclass(value):
        return f".. autoclass:: {place}\n   :members:\n   :inherited-members: {_foreign_bases(value)}\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {place}\n"
    return f".. py:data:: {name}\n\n{textwrap.indent(constant_docstring(module, name), '   ')}\n"


def _foreign_bases(kind: type) -> str:
    """Return the bases of a class that are not the package's: what they pass on is described by their own libraries."""
    return ", ".join(dict.fromkeys(base.__name__ for base in kind.__mro__ if not base.__module__.startswith(PACKAGE)))


def _kind(value: Any) -> int:
    """Return the place of a value's kind on a page: functions, classes, constants, files."""
    kinds = (inspect.isroutine, inspect.isclass, lambda other: not inspect.ismodule(other))
    return next((place for place, is_kind in enumerate(kinds) if is_kind(value)), len(kinds))


def written(module: ModuleType, names: list[str], places: dict[int, str]) -> Iterator[str]:
    """Yield the parts of the page of one module.

    Args:
        module: a room or a file.
        names: what is public in it.
        places: id of a value to the name under which another page has described it; filled.

    Yields:
        Text in reStructuredText.
    """
    name = module.__name__
    yield f"{name}\n{'=' * len(name)}\n"
    parent, _, last = name.rpartition(".")
    if not parent or inspect.ismodule(getattr(sys.modules[parent], last)):  # snows_core.methods is a function, too
        yield f".. py:module:: {name}\n"
    yield inspect.cleandoc(module.__doc__ or "") + "\n"
    others = []
    for public in sorted(names, key=lambda public: _kind(getattr(module, public))):
        value, place = getattr(module, public), f"{name}.{public}"
        known = places.setdefault(id(value), place) if not isinstance(value, int | float | str) else place
        if known == place:
            yield described(module, public)
        else:
            others.append(f":py:obj:`{known}`")
    if others:
        yield f"Also public here: {', '.join(others)}.\n"


def write_reference(folder: Path) -> None:
    """Write the pages, and one that lists them.

    Args:
        folder: where they are written; made anew.
    """
    folder.mkdir(parents=True)
    places: dict[int, str] = {}
    shown = shown_modules()
    rows = []
    for name, (module, names) in shown.items():
        (folder / f"{name}.rst").write_text("\n".join(written(module, names, places)), encoding="utf-8")
        title = inspect.cleandoc(module.__doc__ or name).splitlines()[0].rstrip(".")
        rows.append(f"   * - :doc:`{name}`\n     - {title}\n")
    (folder / "index.rst").write_text(
        "API reference\n=============\n\n"
        "All public names of the package and of its rooms, from their docstrings. Most users need "
        f":doc:`{PACKAGE}` alone.\n\n.. list-table::\n   :widths: auto\n\n{''.join(rows)}\n"
        ".. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in shown),
        encoding="utf-8",
    )
