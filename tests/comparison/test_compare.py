"""``snows.compare``: numbers of single runs, what cells share, crashes, resumption, and what is refused."""

from __future__ import annotations

import importlib
import json
import math

import pandas as pd
import pytest
import torch
from comparisons import GRID, QUICK
from spies import noted
from toys import random_images, same, small_resnet

import snows_core as snows
from snows_core.comparison import Cell, Output
from snows_core.comparison.cells import cells_of, read_patterns
from snows_core.comparison.judge import Judge
from snows_core.comparison.runs import SharedRuns
from snows_core.errors import SnowsError
from snows_core.methods.snows import Snows
from snows_core.methods.wanda import Wanda
from snows_core.sweep.prepare import checked_settings
from snows_core.sweep.sweep import Sweep

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def counted(monkeypatch, kind, name):
    """Count the calls of a method of a class, layer by layer."""
    calls, original = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, problem: calls.append(problem.name) or original(self, problem))
    return calls


def runs_of(network, images, **options):
    settings = checked_settings(snows.prune, update="none", mask="magnitude", **QUICK)
    return SharedRuns(network, images, settings, **options)


def test_every_cell_has_the_weights_of_a_single_run(network, images):
    patterns = read_patterns(["2:4", 0.5])
    runs = runs_of(network, images)
    for pattern, read in patterns.items():
        runs.begin(read)
        for mask in ("magnitude", "wanda", "swaps", "obs"):
            for update in ("layerwise", "none", "snows"):
                once = snows.prune(network, images, pattern, mask=mask, update=update, **QUICK)
                done = runs.run(Cell(pattern, mask, update))
                assert same(runs.write(done).state_dict(), once.state), (pattern, mask, update)
                assert done.figures["loss"] == once.report["loss_end"].sum()
                assert done.figures["sparsity"] == pytest.approx(once.sparsity, abs=1e-12)
        own = snows.prune(network, images, pattern, mask="obs", update="obs", **QUICK)
        assert same(runs.write(runs.run(Cell(pattern, "obs", "own"))).state_dict(), own.state)


@pytest.mark.parametrize("mask", ["wanda", "swaps", "obs"])
def test_fixed_masks_are_those_of_the_dense_networks_inputs_and_re_fitted_as_given_ones(network, images, mask):
    runs = runs_of(network, images, fixed_masks=True)
    runs.begin(read_patterns("2:4")["2:4"])
    for update in ("layerwise", "none", "snows"):
        done = runs.run(Cell("2:4", mask, update))
        once = snows.prune(network, images, "2:4", masks=done.masks, update=update, **QUICK)
        assert same(runs.write(done).state_dict(), once.state), update
    for name, chosen in done.masks.items():  # where a layer alone is pruned, its input is the dense network's
        alone = snows.prune(network, images, "2:4", mask=mask, update="none", layers=[name], **QUICK)
        assert torch.equal(chosen, alone.masks[name]), name


def test_figures_are_those_of_evaluate(network, images, test):
    found = snows.compare(network, images, "1:4", test=test, **GRID)
    for mask in GRID["masks"]:
        pruned = snows.prune(network, images, "1:4", mask=mask, update="none", **QUICK).model
        once = snows.evaluate(pruned, *test, reference=network)
        row = found.table.query("mask == @mask and update == 'none'").iloc[0]
        assert (row["accuracy"], row["agreement"]) == (once.accuracy, once.agreement)
        assert row["kl"] == pytest.approx(once.kl, rel=1e-9)
    assert found.record["dense"]["accuracy"] == snows.evaluate(network, *test).accuracy


def test_a_fixed_mask_is_chosen_once_a_pattern(network, images, test, monkeypatch):
    chosen = counted(monkeypatch, Wanda, "choose")
    grid = GRID | {"masks": ["wanda"], "updates": ["none", "layerwise", "adaprune"]}
    found = snows.compare(network, images, ["2:4", "1:4"], test=test, fixed_masks=True, **grid)
    assert len(set(chosen)) == 5 and len(chosen) == 2 * 5
    assert found.table["mask_seconds"].nunique() == 2  # one for each pattern
    chosen.clear()
    snows.compare(network, images, ["2:4", "1:4"], test=test, **grid)
    assert len(chosen) == 2 * 3 * 5, "otherwise every cell's sweep chooses its own"


def test_network_and_dense_values_are_made_once_a_pattern(network, images, test, monkeypatch):
    traced = noted(monkeypatch, "snows_core.sweep.prepare", "Network")
    dense, advance = [], Sweep._advance

    def watched(self, entry):
        before = self.dense.position
        advance(self, entry)
        dense.append(self.dense.position - before)

    monkeypatch.setattr(Sweep, "_advance", watched)
    grid = GRID | {"masks": ["magnitude", "wanda"], "updates": ["none", "layerwise", "snows"]}
    snows.compare(network, images, ["2:4", "1:4"], test=test, **grid)
    assert len(traced) == 2 and len(dense) == 2 * 6 * 5
    for of_pattern in (dense[:30], dense[30:]):
        assert sum(of_pattern[:5]) > 0 and not any(of_pattern[5:]), "dense values were computed again"


def test_a_sweep_that_is_handed_on_plans_memory_for_its_own_method(network, images, monkeypatch):
    planned, budget = [], Sweep._budget
    monkeypatch.setattr(Sweep, "_budget", lambda self, entry: planned.append(self.needs) or budget(self, entry))
    runs = runs_of(network, images)
    runs.begin(read_patterns("2:4")["2:4"])
    for update in ("none", "layerwise"):
        runs.run(Cell("2:4", "magnitude", update))
    assert [needs.row_factors for needs in planned] == [False] * 5 + [True] * 5


def test_the_table_has_a_row_a_cell_in_the_order_of_the_grid(network, images, test):
    found = snows.compare(network, images, ["2:4", 0.5], test=test, **GRID)
    cells = cells_of(read_patterns(["2:4", 0.5]), GRID["masks"], GRID["updates"])
    table = found.table
    assert list(zip(table["pattern"], table["mask"], table["update"], strict=True)) == [
        tuple(vars(c).values()) for c in cells
    ]
    assert found.complete and not found.crashed and (table["status"] == "done").all()
    assert table.groupby("pattern")["best"].sum().eq(1).all() and table.groupby("pattern")["kl_best"].sum().eq(1).all()
    best = table[table["best"]].set_index("pattern")
    assert (table["accuracy"] <= table["pattern"].map(best["accuracy"])).all() and (best["difference"] == 0).all()
    lowest = table[table["kl_best"]].set_index("pattern")["kl"]
    assert (table["kl"] >= table["pattern"].map(lowest)).all()
    assert table["difference"].to_list() == pytest.approx(
        (table["accuracy"] - table["pattern"].map(best["accuracy"])).to_list(), abs=1e-9
    )


def test_a_crash_is_recorded_and_resumed(network, images, test, tmp_path, monkeypatch):
    grid = GRID | {"updates": ["none", "snows", "layerwise"], "out": tmp_path / "out"}
    solve = Snows.solve

    def broken(self, problem):
        raise RuntimeError("the sky fell\non two lines")

    monkeypatch.setattr(Snows, "solve", broken)
    found = snows.compare(network, images, "2:4", test=test, **grid)
    assert [str(cell) for cell in found.crashed] == ["2:4 magnitude snows", "2:4 wanda snows"] and found.complete
    assert found.table["status"].to_list() == ["done", "crashed", "done"] * 2
    assert found.table["reason"].to_list()[1] == "RuntimeError: the sky fell"
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert "on two lines" in record["cells"][1]["trace"] and len(record["runs"]) == 1
    monkeypatch.setattr(Snows, "solve", solve)
    solved, fitted = (
        counted(monkeypatch, Snows, "solve"),
        counted(monkeypatch, importlib.import_module("snows_core.methods.layerwise").Layerwise, "solve"),
    )
    again = snows.compare(network, images, "2:4", test=test, **grid)
    assert len(solved) == 10 and not fitted, "finished cells were run again"
    assert not again.crashed and len(again.record["runs"]) == 2
    once = snows.compare(network, images, "2:4", test=test, **grid | {"out": None})
    timed = ["mask_seconds", "seconds"]
    pd.testing.assert_frame_equal(again.table.drop(columns=timed), once.table.drop(columns=timed))


def test_a_mask_that_crashes_is_tried_once_for_all_its_cells(network, images, test, monkeypatch):
    calls = []
    monkeypatch.setattr(Wanda, "choose", lambda *_: calls.append(1) or 1 / 0)
    found = snows.compare(network, images, "2:4", test=test, fixed_masks=True, **GRID)
    assert len(calls) == 1 and len(found.crashed) == 2
    assert found.table["status"].to_list() == ["done", "done", "crashed", "crashed"]


def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(network, images, test, tmp_path, monkeypatch):
    def stop(self, problem):
        raise KeyboardInterrupt

    choose = Wanda.choose
    monkeypatch.setattr(Wanda, "choose", stop)
    found = snows.compare(network, images, "2:4", test=test, out=tmp_path, **GRID)
    assert not found.complete and found.table["status"].to_list() == ["done", "done", "not run", "not run"]
    written = pd.read_csv(tmp_path / "results.csv")
    assert written["status"].to_list() == found.table["status"].to_list()
    monkeypatch.setattr(Wanda, "choose", choose)
    assert snows.compare(network, images, "2:4", test=test, out=tmp_path, **GRID).complete


def test_files_hold_the_table_the_provenance_and_each_image(network, images, test, tmp_path):
    drawn = []
    output = Output(
        tmp_path / "new", {"data": "toys"}, lambda found, path: drawn.append(path) or path.write_bytes(b"png")
    )
    found = snows.compare(network, images, "2:4", test=test, out=output, **GRID)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "comparison.png",
        "per_image.safetensors",
        "results.csv",
        "results.json",
    ]
    assert len(drawn) == 4, "a figure after each cell"
    written = pd.read_csv(tmp_path / "new/results.csv", keep_default_na=False)
    assert list(written.columns) == list(found.table.columns) and written["kl"].to_list() == found.table["kl"].to_list()
    record = json.loads((tmp_path / "new/results.json").read_text())
    assert record["source"] == {"data": "toys"} and record["configuration"]["calibration"]["images"] == 16
    run = record["runs"][0]
    assert run["seed"] == 0 and run["device"] == "cpu" and "torch" in run["versions"] and "commit" in run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 2}, "k 1, not 2"),
        ({"seed": 3}, "seed 0, not 3"),
        ({"fixed_masks": True}, "fixed_masks False, not True"),
        ({"ridge": 0.5}, "ridge 0.001, not 0.5"),
        ({"masks": "wanda"}, "masks magnitude, wanda, not wanda"),
        ({"updates": "none"}, "updates none, layerwise, not none"),
        ({"images": random_images(16, seed=5)}, "other calibration images"),
        ({"test": random_images(40, seed=9)}, "other test images"),
        ({"model": small_resnet(seed=1)}, "other dense weights"),
        ({"patterns": "1:4"}, "patterns 2:4, not 1:4"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(network, images, test, tmp_path, change, words):
    call = {"model": network, "images": images, "patterns": "2:4", "test": test, "out": tmp_path, **GRID}
    snows.compare(**call)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(SnowsError, match=r"out: got .*, which holds a comparison with ") as refused:
        snows.compare(**call | change)
    assert words in str(refused.value) and (tmp_path / "results.json").read_bytes() == before


def test_folders_that_cannot_be_used_are_refused_before_any_work(network, images, test, tmp_path, monkeypatch):
    monkeypatch.setattr(Judge, "__init__", lambda *_: 1 / 0)
    (tmp_path / "file").write_text("")
    for out, words in (
        (tmp_path, r"other files \(file\)"),
        (tmp_path / "file", "the file"),
        (tmp_path / "file/x", "written"),
    ):
        with pytest.raises(SnowsError, match=f"out: got .*{words}"):
            snows.compare(network, images, "2:4", test=test, out=out, **GRID)


def test_damaged_files_are_one_sentence(network, images, test, tmp_path):
    snows.compare(network, images, "2:4", test=test, out=tmp_path, **GRID)
    for name, text in (("per_image.safetensors", "x"), ("results.json", "{")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SnowsError, match=r"out: got .*, whose files are damaged"):
            snows.compare(network, images, "2:4", test=test, out=tmp_path, **GRID)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"masks": "wandaa"}, r"masks: got 'wandaa'; expected names among \['magnitude', .*Nearest: wanda"),
        ({"masks": "layerwise"}, "masks: got 'layerwise'"),
        ({"updates": ["wanda"]}, "updates: got 'wanda'; expected names among"),
        ({"masks": ""}, "masks: got none; expected at least one"),
        ({"updates": []}, "updates: got none"),
        ({"masks": 3}, "masks: got 3"),
        ({"updates": "none,none"}, "updates: got 'none' twice"),
        ({"patterns": []}, "patterns: got none"),
        ({"patterns": ["2:4", "2:4"]}, "patterns: got '2:4' twice"),
        ({"patterns": "5:4"}, "pattern: got"),
        ({"test": (random_images(4), torch.zeros(3))}, r"labels: got 3 labels; expected one per image \(4\)"),
        ({"test": iter([random_images(4)])}, "test: got a list_iterator, which is read once"),
        ({"test": []}, "test: got no images"),
        ({"effort": "best"}, "effort: got 'best'; expected options among k, recipe"),
        ({"mask": "wanda"}, "mask: got 'wanda'; expected options among"),
        ({"steeps": 2}, "steeps"),
        ({"stages": 9}, "stages: got 9; expected no more stages than 2:4 has steps"),
        ({"patterns": ["1:4", "2:4"], "stages": 3}, "stages: got 3; expected no more stages than 2:4 has steps"),
        ({"stages": 2, "fixed_masks": True}, "fixed_masks: got True beside stages=2; expected one stage"),
        ({"flops": 0.5}, r"flops: got a value; expected one of \['falcon'\] to be compared"),
        ({"labels": [0] * 16}, r"labels: got a value; expected one of \['cap', .*\] to be compared"),
        ({"labels": [0] * 15, "masks": "chita"}, r"labels: got 15 labels; expected one per calibration image \(16\)"),
        ({"flops": 2, "masks": "falcon"}, "flops: got 2"),
        ({"fixed_masks": "yes"}, "fixed_masks: got 'yes'"),
        ({"layers": ["nosuch"]}, "layers: got"),
        ({"images": torch.full((4, 3, 8, 8), math.nan)}, "images: got 4 images with NaN"),
        ({"model": "resnet20"}, "model: got str"),
    ],
)
def test_mistakes_are_one_sentence(network, images, test, change, words):
    call = {"model": network, "images": images, "patterns": "2:4", "test": test, **GRID}
    with pytest.raises(SnowsError, match=words):
        snows.compare(**call | change)


def test_a_cell_that_cannot_be_is_recorded_with_the_reason(network, images, test):
    grid = GRID | {"masks": "magnitude,wanda,nettrim,obs", "updates": "none,own"}
    found = snows.compare(network, images, ["2:4", "global:0.5", "3:5"], test=test, **grid)
    reasons = found.table.set_index(["pattern", "mask", "update"])["reason"]
    assert reasons["2:4", "magnitude", "own"] == "magnitude re-fits no weights"
    assert reasons["2:4", "wanda", "own"] == "wanda re-fits no weights"
    assert "a pattern without groups" in reasons["2:4", "nettrim", "none"]
    assert "expected a pattern of one layer" in reasons["global:0.5", "obs", "none"]
    assert "fits at least one selected layer" in reasons["3:5", "magnitude", "none"]
    done = found.table.query("status == 'done'")
    assert len(done) == 5 and not found.crashed and found.complete
    assert set(found.table["status"]) == {"done", "not applicable"}
