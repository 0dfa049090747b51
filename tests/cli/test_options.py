"""options.py: texts to values, and one clear refusal for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from snows_core.cli.memory_size import parse_memory
from snows_core.cli.options import _parse_k, checked_seed, home_expanded, read_settings
from snows_core.errors import SnowsError
from snows_core.settings import changeable, get_recipe


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2e9", 2e9),
        ("2000000000", 2e9),
        ("0.5", 0.5),
        ("500MB", 5e8),
        ("3GB", 3e9),
        ("3gb", 3e9),
        ("3 GB", 3e9),
        ("1.5GiB", 1.5 * 2**30),
        ("512KiB", 2**19),
        (".5GB", 5e8),
        ("2G", 2e9),
    ],
)
def test_memory_is_bytes_units_or_a_fraction(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "0", "-1", "-3GB", "0GB", "nan", "inf", "3XB", "GB", "3GB4", "1e999"])
def test_what_is_no_memory_is_refused(text):
    with pytest.raises(typer.BadParameter, match="expected bytes as 2e9, 500MB or 3GB, or a fraction"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "", "all", "²", "five", "9" * 30])
def test_what_is_no_k_is_refused(text):
    with pytest.raises(typer.BadParameter, match="expected an integer >= 0, or auto"):
        _parse_k(text)
    assert _parse_k("auto") == "auto" and _parse_k("5") == 5


def test_seeds_are_those_of_pytorch():
    assert checked_seed(0) == 0 and checked_seed(2**63 - 1) == 2**63 - 1
    for seed in (-1, 2**63, 10**30):
        with pytest.raises(typer.BadParameter, match="expected an integer from 0"):
            checked_seed(seed)


def test_the_home_folder_is_read(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("USERPROFILE", "/somewhere")
    assert home_expanded(Path("~/x")) == Path("/somewhere/x") and home_expanded(Path("x/~")) == Path("x/~")
    assert home_expanded(None) is None
    with pytest.raises(typer.BadParameter, match="no-such-user"):
        home_expanded(Path("~no-such-user-here/x"))


def text_of(value):
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_every_option_of_a_recipe_can_be_set():
    for recipe in ("fast", "paper"):
        made = get_recipe(recipe)
        own = {name: getattr(made if hasattr(made, name) else made.newton, name) for name in changeable()}
        assert get_recipe("fast", **read_settings(f"{name}={text_of(value)}" for name, value in own.items())) == (
            get_recipe("fast", **own)
        )


def test_values_have_the_types_of_the_recipe():
    read = read_settings(
        ["steps=2", "ridge=1", "warm_start=No", "curvature=hessian", " cg-progress = 1e-3 ", "curvature_images=None"]
    )
    assert read == {
        "steps": 2,
        "ridge": 1.0,
        "warm_start": False,
        "curvature": "hessian",
        "cg_progress": 1e-3,
        "curvature_images": None,
    }
    assert type(read["ridge"]) is float and type(read["steps"]) is int


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["stpes=2"], r"--set: got 'stpes=2'; expected one of targets, .*Nearest: steps"),
        (["name=mine"], r"--set: got 'name=mine'; expected one of"),
        (["newton=1"], r"--set: got 'newton=1'; expected one of"),
        (["steps"], r"--set: got 'steps'; expected name=value"),
        (["steps="], r"--set: got 'steps='; expected an integer behind the ="),
        (["steps=two"], r"--set: got 'steps=two'; expected an integer behind the ="),
        (["steps=2.0"], r"expected an integer behind the ="),
        (["steps=none"], r"expected an integer behind the ="),
        (["ridge=small"], r"expected a number behind the ="),
        (["warm_start=2"], r"expected true or false behind the ="),
        (["curvature_images=some"], r"expected an integer, or none behind the ="),
        (["steps=1", "steps=2"], r"--set: got steps twice; expected each option once"),
        (["=2"], r"--set: got '=2'; expected one of"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(texts, message):
    with pytest.raises(SnowsError, match=message):
        read_settings(texts)
