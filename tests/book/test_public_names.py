"""What the notebooks use of the package is public: a name in the ``__all__`` of the package or of one of its rooms."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks" / "solutions").glob("*.ipynb")])
PACKAGE = "snows_core"
ROOMS = (
    *("activations", "book", "comparison", "distributed", "export", "files", "loss", "masks", "methods", "network"),
    *("settings", "solvers", "sweep", "zoo"),
)


def code_of(path: Path) -> ast.Module:
    """Return all code cells of a notebook as one module, without lines of IPython's own."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [
        line for cell in cells if cell["cell_type"] == "code" for line in [*"".join(cell["source"]).split("\n"), ""]
    ]
    return ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))


def public_of(module: str) -> set[str]:
    """Return the names that a module makes public; the rooms themselves belong to the package's."""
    if module != PACKAGE and module.removeprefix(f"{PACKAGE}.") not in ROOMS:
        return set()
    names = set(getattr(importlib.import_module(module), "__all__", ()))
    return names | set(ROOMS) if module == PACKAGE else names


def used_names(tree: ast.Module) -> set[tuple[str, str]]:
    """Return (module, name) of what is imported from the package, and of each attribute of its modules that is read."""
    found, modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            found |= {(node.module, alias.name) for alias in node.names}
            rooms = {alias.asname or alias.name: alias.name for alias in node.names if alias.name in ROOMS}
            modules |= {name: f"{PACKAGE}.{room}" for name, room in rooms.items() if node.module == PACKAGE}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    modules[alias.asname or PACKAGE] = alias.name
                    module, _, name = alias.name.rpartition(".")
                    found |= {(module, name)} if module else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add((modules[node.value.id], node.attr))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[f"{path.parent.name}/{path.stem}" for path in NOTEBOOKS])
def test_a_notebook_uses_public_names_only(path):
    used = {(module, name) for module, name in used_names(code_of(path)) if not name.startswith("__")}
    hidden = {(module, name) for module, name in used if name not in public_of(module)}
    assert not hidden, "make these names public, or take others"


def test_what_is_not_public_is_found():
    source = """
import snows_core as snows
import snows_core.tables
from snows_core import get_recipe, zoo
from snows_core.masks.mask_values import read_mask
from snows_core.masks import parse_pattern as parse
snows.prune, snows.secret, zoo.experiment, zoo.hidden
"""
    used = used_names(ast.parse(source))
    assert {name for module, name in used if name not in public_of(module)} == {
        "read_mask",  # from a file inside a room
        "tables",
        "secret",
        "hidden",
    }
    assert ("snows_core", "prune") in used and ("snows_core.zoo", "experiment") in used


def test_the_rooms_are_there_and_the_list_knows_them_all():
    folders = {file.parent.name for file in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders - {"cli"} <= set(ROOMS)
    assert NOTEBOOKS
