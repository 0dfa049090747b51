"""Every public name is documented, the check sees what is not, and the reference is written."""

from __future__ import annotations

import dataclasses
import sys
import types

import build_api
import pytest

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
    assert build_api.gaps(build_api.public_modules()) == []


def test_what_is_not_documented_is_found(room):
    room.__doc__ = ""
    assert build_api.gaps({"room": room}) == [
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
    modules = build_api.public_modules()
    assert {"snows_core", "snows_core.masks", "snows_core.solvers", "snows_core.network", "snows_core.loss"} <= set(
        modules
    )
    for name in snows_core.__all__:
        assert name in vars(modules["snows_core"])


def test_the_reference_is_written_with_formulas_links_and_the_way_back(tmp_path):
    assert build_api.build(tmp_path / "api") == []
    page = (tmp_path / "api/snows_core.html").read_text(encoding="utf-8")
    for name in snows_core.__all__:
        assert f'id="{name}"' in page, name
    assert '<a href="../index.html">All notebooks</a>' in page and "snows_core/masks.html" in page
    masks = (tmp_path / "api/snows_core/masks.html").read_text(encoding="utf-8")
    assert "Layer name to bool tensor" in masks and '<a href="../../index.html">' in masks
    assert ":func:" not in page and ":class:" not in masks
    assert dataclasses.is_dataclass(snows_core.NM) and 'id="NM.n"' not in page  # stands under Attributes
