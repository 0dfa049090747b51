"""A check that every public name is documented.

    python tools/docstrings.py    list what is not (exit code 1 when there is something)

Public is what ``snows_core`` and its rooms name in ``__all__``, with the public methods and properties of its classes.
Documented means: a docstring; every parameter named in its section Args, or in its words where it has no such section;
every field of a dataclass under Attributes or Args; a string below the assignment of a constant or type alias.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

PACKAGE = "snows_core"
_SECTION = re.compile(r"^(Args|Attributes):\n((?:[ \t]+.*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\*{0,2}\w[\w, *]*?)(?: \([^)]*\))?:", re.MULTILINE)


def public_modules() -> dict[str, ModuleType]:
    """Return the package and each of its rooms and files that names what is public, all names loaded."""
    package = importlib.import_module(PACKAGE)
    names = [PACKAGE, *(f"{PACKAGE}.{found.name}" for found in pkgutil.iter_modules(package.__path__))]
    modules = {name: importlib.import_module(name) for name in names}
    public = {name: module for name, module in modules.items() if hasattr(module, "__all__")}
    for module in public.values():
        for name in module.__all__:
            getattr(module, name)
    return public


def defining_module(module: ModuleType, name: str) -> ModuleType:
    """Return the module in which a room's public constant is assigned: the one that the room imports it from."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return defining_module(importlib.import_module(node.module), name)
    return module


def constant_docstring(module: ModuleType, name: str) -> str:
    """Return the string below the assignment of a constant or type alias; empty where there is none.

    Args:
        module: a module that has the constant, whether it assigns or imports it.
        name: of the constant.

    Returns:
        The string.
    """
    body = ast.parse(inspect.getsource(defining_module(module, name))).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(after, "value", None) if isinstance(after, ast.Expr) else None
            return inspect.cleandoc(value.value) if isinstance(getattr(value, "value", None), str) else ""
    return ""


def described(docstring: str) -> set[str]:
    r"""Return the names that a docstring lists under Args or Attributes.

    >>> sorted(described("Do it.\n\nArgs:\n    x: the first\n        of two.\n    y, z: more.\n"))
    ['x', 'y', 'z']
    """
    entries = [entry for _, text in _SECTION.findall(docstring + "\n") for entry in _ENTRY.findall(text)]
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def undescribed(function: Any, docstring: str) -> list[str]:
    """Return the parameters of a function that its docstring does not describe.

    Args:
        function: also a class, whose parameters are those of its constructor.
        docstring: what documents it.

    Returns:
        Names of parameters.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return []
    listed = described(docstring)
    known = listed if re.search(r"^Args:$", docstring, re.MULTILINE) else listed | set(re.findall(r"\w+", docstring))
    return [name for name in parameters if name not in known and name not in ("self", "cls")]


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield name and function of each public method and property that a class of the package defines or inherits."""
    for name, value in inspect.getmembers_static(kind) if hasattr(inspect, "getmembers_static") else _static(kind):
        function = getattr(value, "__func__", value)
        if isinstance(value, property):
            function = value.fget
        elif isinstance(value, cached_property):
            function = value.func
        own = (getattr(function, "__module__", None) or "").startswith(PACKAGE)
        if not name.startswith("_") and inspect.isfunction(function) and own:
            yield name, function


def _static(kind: type) -> list[tuple[str, Any]]:
    """Return what ``inspect.getmembers_static`` of Python 3.11 returns."""
    return [(name, inspect.getattr_static(kind, name)) for name in sorted(dir(kind))]


def class_gaps(place: str, kind: type) -> Iterator[str]:
    """Yield what is not documented in a class."""
    text = inspect.cleandoc(kind.__doc__ or "")
    if not text or text.startswith(f"{kind.__name__}("):  # what dataclasses write where there is no docstring
        yield f"{place}: no docstring"
        return
    if not issubclass(kind, enum.Enum | BaseException | tuple) and not getattr(kind, "_is_protocol", False):
        for name in undescribed(kind, text):
            yield f"{place}: parameter {name}"
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if not field.name.startswith("_") and field.name not in described(text):
                yield f"{place}: attribute {field.name}"
    for name, function in members(kind):
        yield from function_gaps(f"{place}.{name}", function)


def function_gaps(place: str, function: Any) -> Iterator[str]:
    """Yield what is not documented in a function."""
    text = inspect.getdoc(function) or ""
    if not text:
        yield f"{place}: no docstring"
    for name in undescribed(function, text) if text else ():
        yield f"{place}: parameter {name}"


def public_functions(module: ModuleType) -> list[str]:
    """Return the names of the functions of a file that a room makes public as a whole."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return [name for name in own if not name.startswith("_") and inspect.isfunction(vars(module)[name])]


def gaps(modules: dict[str, ModuleType]) -> list[str]:
    """Return what is public and not documented, one line each: the name, and what is missing.

    Args:
        modules: name to module, each with ``__all__``.

    Returns:
        The lines; none when all is documented.
    """
    found = []
    for module_name, module in modules.items():
        if not (module.__doc__ or "").strip():
            found.append(f"{module_name}: no docstring")
        for name in module.__all__:
            value, place = getattr(module, name), f"{module_name}.{name}"
            if inspect.isclass(value):
                found += class_gaps(place, value)
            elif inspect.isfunction(value):
                found += function_gaps(place, value)
            elif inspect.ismodule(value):
                for inner in public_functions(value):
                    found += function_gaps(f"{place}.{inner}", vars(value)[inner])
            elif not constant_docstring(module, name):
                found.append(f"{place}: no string below its assignment")
    return found


def main() -> int:
    """Print what is not documented; return the exit code."""
    found = gaps(public_modules())
    for line in found:
        print(f"not documented: {line}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
