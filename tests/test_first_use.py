"""What is loaded when, counted in modules of a fresh interpreter: seconds would differ from machine to machine."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import snows_core

HEAVY = ("torch", "timm", "torchvision", "pandas", "seaborn", "matplotlib", "sklearn", "numpy", "huggingface_hub")
COMMANDS = (
    "prune",
    "compare",
    "evaluate",
    "export",
    "push",
    "estimate",
    "reproduce",
    "train",
    "experiments",
    "methods",
)


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **environment})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def loaded_after(code: str) -> list[str]:
    shown = python(f"{code}\nimport json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))")
    return json.loads(shown.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import snows_core",
        "import snows_core; snows_core.SnowsError, snows_core.__version__, dir(snows_core)",
        "import snows_core; snows_core.Recipe('mine', newton=snows_core.NewtonOptions(steps=2))",
        "import snows_core; snows_core.PruneSettings(k=2, recipe='paper', layers=['conv*'])",
        "import snows_core.cli.app",
    ],
)
def test_importing_the_package_loads_nothing_heavy(code):
    assert loaded_after(code) == []


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), *((command, "--help") for command in COMMANDS)])
def test_help_loads_nothing_heavy(arguments):
    code = f"from snows_core.cli.app import app\napp({list(arguments)!r}, standalone_mode=False)"
    assert loaded_after(code) == []


def test_threads_are_told_to_sleep_before_pytorch_is_loaded():
    code = (
        "import os, sys, snows_core\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and 'torch' not in sys.modules\n"
        "assert callable(snows_core.versions) and 'torch' in sys.modules"
    )
    python(code)


def test_every_public_name_resolves_and_is_listed():
    assert sorted({*snows_core._PLACES, "SnowsError"}) == sorted(snows_core.__all__)
    for name in snows_core.__all__:
        value = getattr(snows_core, name)
        assert callable(value) and name in dir(snows_core)
        if name in snows_core._PLACES:
            module = importlib.import_module(f"snows_core.{snows_core._PLACES[name]}")
            assert value is getattr(module, name) and value.__module__ == module.__name__


def test_type_checkers_see_the_names_that_are_loaded_later():
    tree = ast.parse(Path(snows_core.__file__).read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"snows_core.{place}" for name, place in snows_core._PLACES.items()}


def test_a_function_is_never_hidden_by_its_module():
    code = (
        "import snows_core.zoo, importlib\n"
        "for name in ('evaluate', 'provenance', 'prune', 'estimate', 'methods'):\n"
        "    importlib.import_module(f'snows_core.{name}')\n"
        "    assert getattr(snows_core, name).__name__ == name\n"
        "from snows_core import masks, prune\n"
        "assert prune is snows_core.prune and masks.NM is snows_core.NM and snows_core.zoo.EXPERIMENTS"
    )
    python(code)


@pytest.mark.parametrize("name", ["prune", "estimate", "evaluate", "provenance", "methods"])
def test_the_import_system_puts_the_function_where_the_module_has_its_name(name, monkeypatch):
    module = importlib.import_module(f"snows_core.{name}")
    monkeypatch.delattr(snows_core, name)
    setattr(snows_core, name, module)  # what the import system does last
    assert getattr(snows_core, name) is getattr(module, name)


def test_modules_are_attributes_and_unknown_names_are_not(monkeypatch):
    monkeypatch.delattr(snows_core, "errors")
    assert snows_core.errors is importlib.import_module("snows_core.errors")
    assert not hasattr(snows_core, "nosuch") and not hasattr(snows_core, "_nosuch")
    with pytest.raises(ImportError, match="nosuch"):
        from snows_core import nosuch  # noqa: F401


def test_a_package_that_is_missing_is_named():
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import snows_core\n"
        "try: snows_core.load\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert "safetensors" in python(code)
