"""The command line under signals and kills: what is done is kept, and the same command goes on there."""

import json
import signal

import pytest
from killed_runs import command_line, run
from safetensors.torch import load_file
from toys import same

PRUNE = "prune --model digits-resnet20 --images 48 --k 1 --effort quick --layers layer1.* -q".split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(command_line, [*PRUNE, "--out", str(out)]) == 0
    return out


def assert_goes_on(out, whole):
    assert run(command_line, [*PRUNE, "--out", str(out)]) == 0
    assert_equal(out, whole)


def assert_equal(out, whole):
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for name in ("model.safetensors", "masks.safetensors"):
        assert same(load_file(out / name), load_file(whole / name))
    one, other = (json.loads((folder / "manifest.json").read_text()) for folder in (out, whole))
    assert one["evaluation"] == other["evaluation"] and one["complete"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_same_command_goes_on_after_a_kill(whole, tmp_path, count):
    out = tmp_path / "out"
    assert run(command_line, [*PRUNE, "--out", str(out)], count) == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == ["checkpoint"]
    assert_goes_on(out, whole)


@pytest.mark.parametrize(
    "signals, after",
    [
        ([signal.SIGTERM], 0.0),
        ([signal.SIGHUP], 0.0),
        ([signal.SIGINT, signal.SIGINT], 0.02),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP], 0.005),
    ],
)
def test_signals_keep_what_is_done(whole, tmp_path, signals, after):
    out = tmp_path / "out"
    assert run(command_line, [*PRUNE, "--out", str(out)], None, signals, after) == 130
    assert sorted(path.name for path in out.iterdir())[0] == "checkpoint" and len(list(out.iterdir())) == 5
    manifest = json.loads((out / "manifest.json").read_text())
    assert not manifest["complete"] and "evaluation" not in manifest
    assert_goes_on(out, whole)


def test_another_command_is_refused_and_nothing_is_lost(whole, tmp_path):
    out = tmp_path / "out"
    assert run(command_line, [*PRUNE, "--out", str(out)], 3) == -signal.SIGKILL
    assert run(command_line, [*PRUNE, "--out", str(out), "--pattern", "1:4"], None, (), 0, tmp_path / "told") == 2
    assert "a run with pattern 2:4, not 1:4" in (tmp_path / "told").read_text()
    assert_goes_on(out, whole)


def test_a_checkpoint_elsewhere_goes_away_once_the_result_is_saved(whole, tmp_path):
    out, kept = tmp_path / "out", tmp_path / "kept"
    where = ["--out", str(out), "--checkpoint-dir", str(kept)]
    assert run(command_line, [*PRUNE, *where], 3) == -signal.SIGKILL
    assert not out.exists() and len(list(kept.glob("*-layer.safetensors"))) == 1
    assert run(command_line, [*PRUNE, *where]) == 0
    assert not kept.exists()
    assert_equal(out, whole)


def test_a_finished_result_is_not_replaced(whole, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert run(command_line, [*PRUNE, "--out", str(whole)], None, (), 0, tmp_path / "told") == 2
    assert "holds a result already" in (tmp_path / "told").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before
