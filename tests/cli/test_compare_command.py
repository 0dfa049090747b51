"""``snows compare``: what is typed reaches the comparison, what is written, exit codes."""

from __future__ import annotations

import json

import matplotlib.image
import pandas as pd
import pytest
from typer.testing import CliRunner

from snows_core.cli import app as cli
from snows_core.comparison import grid
from snows_core.errors import SnowsError
from snows_core.methods.snows import Snows

FAST = ["compare", "--model", "digits-resnet20", "--images", "16", "--layers", "layer3.2.conv2", "--quiet"]
GRID = ["--pattern", "1:4", "--masks", "magnitude,wanda", "--updates", "none,layerwise"]


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    return run(*FAST, *GRID, "--pattern", "2:4", "--k", "0", "--seed", "3", "--out", out), out


def test_tables_and_a_figure_are_written(written):
    done, out = written
    assert done.exit_code == 0, done.output
    assert "dense accuracy" in done.output and f"saved to {out}" in done.output and " best" in done.output
    table = pd.read_csv(out / "results.csv")
    assert table["pattern"].to_list() == ["1:4"] * 4 + ["2:4"] * 4 and (table["status"] == "done").all()
    record = json.loads((out / "results.json").read_text())
    source = record["source"]
    assert source["model"] == "digits-resnet20" and source["test"]["images"] == 597
    assert len(set(source["calibration"].pop("indices"))) == 16
    assert source["calibration"] == {"data": "digits", "split": "train", "seed": 3}
    settings = record["configuration"]["settings"]
    assert (settings["k"], settings["seed"], settings["layers"]) == (0, 3, ["layer3.2.conv2"])
    assert settings["exclude"] == ["*downsample*"], "the experiment's own"
    assert record["dense"]["accuracy"] == pytest.approx(99.16, abs=0.01)
    picture = matplotlib.image.imread(out / "comparison.png")
    assert picture.shape[0] > 300 and picture.std() > 0.01


def test_the_same_command_has_nothing_left_to_do_and_another_is_refused(written, monkeypatch):
    _, out = written
    monkeypatch.setattr(grid, "_judged", lambda *_: 1 / 0)
    again = run(*FAST, *GRID, "--pattern", "2:4", "--k", "0", "--seed", "3", "--out", out)
    assert again.exit_code == 0, again.output
    other = run(*FAST, *GRID, "--pattern", "2:4", "--k", "1", "--seed", "3", "--out", out)
    assert other.exit_code == 2 and "error: --out: got" in other.stderr and "k 0, not 1" in other.stderr


def test_fixed_masks_reach_the_comparison(tmp_path):
    assert run(*FAST, *GRID, "--fixed-masks", "--out", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out/results.json").read_text())["configuration"]["fixed_masks"] is True


def test_crashed_cells_are_named_and_the_exit_code_is_one(tmp_path, monkeypatch):
    def broken(self, problem):
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(Snows, "solve", broken)
    more = ["--pattern", "1:4", "--masks", "magnitude", "--updates", "snows,none,own", "--out", tmp_path / "out"]
    done = run(*FAST, *more)
    assert done.exit_code == 1
    assert "1 of 3 cells crashed: 1:4 magnitude snows (RuntimeError: the sky fell)" in done.stderr
    assert "not applicable: 1:4 magnitude own: magnitude re-fits no weights" in done.output
    assert pd.read_csv(tmp_path / "out/results.csv")["status"].to_list() == ["crashed", "done", "not applicable"]


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path, monkeypatch):
    def stop(self, problem):
        raise KeyboardInterrupt

    monkeypatch.setattr(Snows, "solve", stop)
    more = ["--pattern", "1:4", "--masks", "magnitude", "--updates", "none,snows", "--out", tmp_path / "out"]
    done = run(*FAST, *more)
    assert done.exit_code == 130 and "the same command goes on there" in done.stderr
    assert pd.read_csv(tmp_path / "out/results.csv")["status"].to_list() == ["done", "not run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--masks", "wandaa"], "--masks: got 'wandaa'"),
        (["--updates", "wanda"], "--updates: got 'wanda'"),
        (["--updates", ","], "--updates: got none"),
        (["--pattern", "5:4"], "--pattern: got"),
        (["--pattern", "2:4", "--pattern", "2:4"], "--pattern: got '2:4' twice"),
        (["--out", "file"], "--out: got the file"),
        (["--images", "99999"], "--images: got 99999"),
    ],
)
def test_mistakes_are_one_sentence_in_the_words_that_were_typed(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    done = run("compare", "--model", "digits-resnet20", "--quiet", *arguments)
    assert done.exit_code == 2 and words in done.stderr and done.stderr.startswith("error: "), done.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_figure_is_drawn_where_the_plotting_libraries_are_missing(tmp_path, monkeypatch):
    from snows_core.cli import comparing

    def missing(*_):
        raise SnowsError("This part of snows_core needs matplotlib, not installed here.")

    monkeypatch.setattr(comparing, "import_plot", missing)
    done = run(*FAST, "--pattern", "1:4", "--masks", "magnitude", "--updates", "none", "--out", tmp_path / "out")
    assert done.exit_code == 0 and "no comparison.png: This part" in done.output
    assert not (tmp_path / "out/comparison.png").exists() and (tmp_path / "out/results.csv").is_file()
