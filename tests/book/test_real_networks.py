"""real_networks.py: records of real networks are made by the command, once, and read as a table."""

import json

import pytest

from snows_core.book.records import real_networks
from snows_core.book.records.real_networks import RealRun, read_records, read_runs, record_missing
from snows_core.errors import SnowsError
from snows_core.loss.intervals import wilson

RUNS = read_runs([["2:4", "magnitude", 128], ["2:4", "layer-wise", 128]], "digits-resnet20", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    made = record_missing(RUNS, place)
    assert [file.stem for file in made] == [run.stem for run in RUNS]
    return place


def test_a_record_names_its_command_cost_and_measurements(folder):
    record = json.loads((folder / f"{RUNS[1].stem}.json").read_text())
    assert record["command"].startswith("snows prune --model digits-resnet20 --pattern 2:4 --effort quick --update")
    assert record["cpu_seconds"] > 1 and 0.1 < record["peak_gb"] < 5 and record["layers_pruned"] == 18
    manifest = record["manifest"]
    assert len(manifest["source"]["calibration"]["indices"]) == 128
    assert manifest["evaluation"]["dense"]["images"] == 597


def test_records_become_a_table_in_the_order_of_the_methods(folder):
    table = read_records(folder)
    assert list(table["method"]) == ["magnitude", "layer-wise"] and list(table["images"]) == [128, 128]
    first, second = table.to_dict("records")
    assert first["accuracy"] < 90 < second["accuracy"] and second["kl"] < first["kl"]
    assert second["low"] < second["accuracy"] < second["high"] and second["dense"] > 99
    assert read_records(folder / "none").empty


def test_what_is_recorded_is_not_run_again(folder, monkeypatch):
    monkeypatch.setattr(real_networks, "_recorded", lambda run, device: pytest.fail(f"{run.stem} was run again"))
    assert record_missing(RUNS, folder) == []


def test_a_run_that_fails_leaves_no_record_and_says_why(tmp_path):
    with pytest.raises(SnowsError, match=r"digits-resnet20-2of4-quick-99999-0: `snows prune .* failed: .*at most"):
        record_missing([RealRun("digits-resnet20", "2:4", "quick", 99_999, 0)], tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SnowsError, match="method: got slow"):
        RealRun("digits-resnet20", "2:4", "slow", 8, 0).options()


def test_a_bound_on_memory_is_said_only_where_it_was_given():
    assert RealRun("vit", "2:4", "quick", 8, 3, max_memory="5GB").options()[-2:] == ["--max-memory", "5GB"]
    assert "--max-memory" not in RealRun("vit", "2:4", "quick", 8, 3).options()


def test_layers_left_dense_stand_in_name_command_and_table(tmp_path):
    (run,) = read_runs([["global:0.74:0.95", "quick", 8, "*conv_dw"]], "lite", 3)
    assert (
        run.options()[-2:] == ["--exclude", "*conv_dw"]
        and run.stem == "lite-global-0.74-0.95-without-conv_dw-quick-8-0"
    )
    pruned = {"images": 500, "accuracy": 40.0, "agreement": 45.0, "kl": 1.0}
    record = {"run": vars(run), "cpu_seconds": 1.0, "peak_gb": 1.0}
    record["manifest"] = {"evaluation": {"dense": {"accuracy": 87.0}, "pruned": pruned}}
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert read_records(tmp_path)["pattern"].tolist() == ["global:0.74:0.95 without *conv_dw"]


def test_features_get_the_interval_of_equal_neighbours(tmp_path):
    pruned = {"images": 500, "accuracy": None, "agreement": None, "kl": None, "cosine": 0.9, "cka": 0.8}
    pruned["neighbours"] = 40.0
    run = vars(RealRun("vit", "2:4", "quick", 8, 3))
    evaluation = {"dense": {"accuracy": None}, "pruned": pruned}
    record = {"run": run, "cpu_seconds": 1.0, "peak_gb": 1.0, "manifest": {"evaluation": evaluation}}
    (tmp_path / "a.json").write_text(json.dumps(record))
    row = read_records(tmp_path).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx([100 * bound for bound in wilson(0.4, 500)])
