"""The house keeps its order: imports go down, no cycle, few files at the top, few arguments a function."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "snows_core"
MOST_AT_THE_TOP = 12
MOST_ARGUMENTS = 8

# Functions with more than eight arguments that are still to be changed. Nothing is added here; a name goes as soon as
# its function takes fewer, and the test says so.


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Return each module of this checkout to the modules that it imports, those for type checkers included."""
    graph = grimp.build_graph("snows_core", cache_dir=None)
    assert graph.modules == modules().keys(), "another checkout is imported"
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_import_linter_keeps_every_contract():
    program = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_no_module_imports_itself_through_others():
    """At run time; two files of one room may name each other's classes for type checkers."""
    graph = grimp.build_graph("snows_core", cache_dir=None, exclude_type_checking_imports=True)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    state: dict[str, str] = {}

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert state.get(module) != "open", f"a cycle: {' -> '.join((*way[way.index(module) :], module))}"
        if module not in state:
            state[module] = "open"
            for other in sorted(imports[module]):
                visit(other, (*way, module))
            state[module] = "done"

    for module in sorted(imports):
        visit(module, ())


def test_no_room_imports_itself_through_others(imports):
    """Whole rooms have no cycle either."""
    left = {
        (module.split(".")[1], other.split(".")[1])
        for module, others in imports.items()
        for other in others
        if "." in module and "." in other
    }
    left = {(room, other) for room, other in left if room != other}
    while left:  # take away rooms that import no other one, until none is left
        rooms = {room for room, _ in left}
        lowest = {other for _, other in left} - rooms
        assert lowest, f"a cycle among {sorted(rooms)}"
        left = {(room, other) for room, other in left if other not in lowest}


def test_only_the_command_line_imports_the_notebooks_machinery(imports):
    readers = {
        module.split(".")[1] for module, others in imports.items() if any("snows_core.book" in o for o in others)
    }
    assert readers <= {"book", "cli"}


def test_the_sweep_knows_no_method_by_name(imports):
    known = {f"snows_core.methods{module}" for module in ("", ".base", ".cost", ".problem", ".enough", ".fallback")}
    for module, others in imports.items():
        if module.startswith("snows_core.sweep"):
            assert {other for other in others if other.startswith("snows_core.methods")} <= known, module


def test_timm_is_imported_in_the_zoo_alone():
    for name, tree in modules().items():
        found = [
            node
            for node in ast.walk(tree)
            if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "timm" for a in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "timm")
        ]
        assert not found or name.startswith("snows_core.zoo."), name


def test_few_files_lie_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP


def counted() -> dict[str, int]:
    """Return each function or method of the package to its number of arguments, without self and cls."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, name: str, in_class: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}" if hasattr(child, "name") and isinstance(child.name, str) else name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                given = child.args
                arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                bound = in_class and not any(getattr(d, "id", "") == "staticmethod" for d in child.decorator_list)
                found[inner] = len(arguments) - (bound and bool(given.posonlyargs or given.args))
                visit(child, inner, False)
            else:
                visit(child, inner, isinstance(child, ast.ClassDef))

    for module, tree in modules().items():
        visit(tree, module.removeprefix("snows_core."), False)
    return found


def test_no_function_takes_more_than_eight_arguments():
    above = {name for name, count in counted().items() if count > MOST_ARGUMENTS}
    assert above == set(), f"more than {MOST_ARGUMENTS} arguments: group what travels together"


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "README.md"])
def test_the_drawings_hold_every_room_and_file(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    drawing = text.split("snows_core/    the package")[1].split("tests/")[0] if page == "README.md" else text
    words = set(re.findall(r"\w+", drawing))
    assert rooms | files <= words


def test_architecture_names_what_is_there():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_]+)`", text):
        place, _, last = name.rpartition(".")
        module = importlib.import_module(f"snows_core.{place}")
        assert hasattr(module, last) or importlib.import_module(f"snows_core.{name}"), name
    for path in re.findall(r"`([\w./]+\.py)`", text):
        assert (ROOT / path).is_file() or (PACKAGE / path).is_file(), path
