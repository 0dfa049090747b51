"""The table of methods: every method has its row, and nothing in it is left out."""

import pytest
from typer.testing import CliRunner

import snows_core as snows
from snows_core.cli import app as cli
from snows_core.methods import METHODS, NETWORK_METHODS, Origin


def test_every_method_has_a_whole_row():
    table = snows.methods()
    assert list(table.index) == sorted(["magnitude", *METHODS, *NETWORK_METHODS])
    assert list(table.columns) == ["gives", "paper", "year", "needs", "cost", "limits"]
    assert table.map(lambda value: bool(str(value).strip())).all(axis=None)
    assert table["year"].between(1989, 2100).all()


@pytest.mark.parametrize("name", [*METHODS, *NETWORK_METHODS])
def test_every_class_declares_its_own_origin(name):
    assert isinstance(vars({**METHODS, **NETWORK_METHODS}[name]).get("origin"), Origin), (
        "inherited, so it would be another paper's"
    )


def test_what_a_method_gives_is_what_prune_takes_it_for():
    table = snows.methods()["gives"]
    masks = {name for name, given in table.items() if "mask" in given}
    updates = {name for name, given in table.items() if "weights" in given}
    choosers = {name for name, method in METHODS.items() if method.chooses_masks}
    assert masks == {"magnitude", *choosers, *NETWORK_METHODS}
    known = {**METHODS, **NETWORK_METHODS}
    assert updates == {name for name, method in known.items() if method.updates_weights}


def test_the_command_prints_it_in_120_columns():
    shown = CliRunner().invoke(cli.app, ["methods"])
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert max(map(len, lines)) <= 120
    words = " ".join(shown.output.split())
    for name, row in snows.methods().iterrows():
        assert any(line.startswith(f"{name} ") for line in lines) and row["paper"] in words and row["cost"] in words
