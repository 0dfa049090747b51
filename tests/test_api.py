"""Every public name is documented, the check sees what is not, and the reference has a page a room."""

from __future__ import annotations

import re
import sys
import types

import docstrings
import pytest
import site_reference

import snows_core

SOURCE = '''
"""A room."""
import dataclasses

from snows_core.masks import Masks

DOCUMENTED = 1
"""A number."""

BARE = 2  # a number


def function(x, *rest, y=0):
    """Return x and y."""


def listed(x, y):
    """Do it.

    Args:
        x: the first; y stands beside it.
    """


@dataclasses.dataclass
class Fields:
    """Two fields.

    Attributes:
        x, y: numbers.
    """

    x: int
    y: int
    z: int = 0

    def method(self, value):
        return value

    @property
    def half(self):
        return self.x / 2

    def _private(self):
        return 0


@dataclasses.dataclass
class Bare:
    x: int
'''


@pytest.fixture
def room(tmp_path, monkeypatch):
    path = tmp_path / "room.py"
    path.write_text(SOURCE)
    module = types.ModuleType("snows_core.room")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(SOURCE, str(path), "exec"), vars(module))
    module.__all__ = ["BARE", "DOCUMENTED", "Bare", "Fields", "Masks", "function", "listed"]
    return module


def test_every_public_name_is_documented():
    assert docstrings.gaps(docstrings.public_modules()) == []


def test_what_is_not_documented_is_found(room):
    room.__doc__ = ""
    assert docstrings.gaps({"room": room}) == [
        "room: no docstring",
        "room.BARE: no string below its assignment",
        "room.Bare: no docstring",
        "room.Fields: parameter z",
        "room.Fields: attribute z",
        "room.Fields.half: no docstring",
        "room.Fields.method: no docstring",
        "room.function: parameter rest",
        "room.listed: parameter y",
    ]


def test_the_rooms_are_found_with_all_that_they_name():
    modules = docstrings.public_modules()
    assert {"snows_core", "snows_core.masks", "snows_core.solvers", "snows_core.network", "snows_core.loss"} <= set(
        modules
    )
    for name in snows_core.__all__:
        assert name in vars(modules["snows_core"])


def test_the_reference_describes_every_public_name_once(tmp_path):
    site_reference.write_reference(tmp_path / "api")
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "api").glob("*.rst")}
    described = [
        found for text in texts.values() for found in re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)
    ]
    assert len(described) == len(set(described)) > 100
    for name in ("prune", "PruneResult", "SnowsError"):
        assert f"snows_core.{name}" in described
    objects = [getattr(sys.modules[module], name) for module, _, name in (place.rpartition(".") for place in described)]
    assert len({id(value) for value in objects}) == len(objects)
    assert "Also public here: :py:obj:`snows_core.NM`" in texts["snows_core.masks"]
    assert ".. py:data:: Masks\n\n   Layer name to bool tensor" in texts["snows_core.masks"]
    assert ".. py:module:: snows_core.masks" in texts["snows_core.masks"]
    assert "py:module" not in texts["snows_core.methods"]  # snows_core.methods is a function, too
    for name in texts:
        assert name == "index" or f"   {name}\n" in texts["index"]


def test_the_star_of_a_shape_is_no_emphasis():
    lines = ["x: (out, in, *kernel), of *any* type; f(*rest)"]
    site_reference.escape_shapes(None, "", "", None, None, lines)
    assert lines == ["x: (out, in, \\*kernel), of *any* type; f(\\*rest)"]
