"""The same command twice, in processes of their own, writes the same files but for what clocks and memory say."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURED = {"time", "seconds", "mask_seconds", "peak"}  # by name, wherever they stand
COMMON = "--model digits-resnet20 --layers layer2.* --images 32 --test-images 50 --seed 3 --quiet"
COMMANDS = {
    "prune": f"prune {COMMON} --pattern 2:4 --k 1 --stages 2 --refine 2 --mask swaps",
    "compare": f"compare {COMMON} --pattern 0.6 --k 1 --masks magnitude,chita --updates none,snows",
}
SCRIPT = """
import sys, torch
from snows_core.cli.app import app
torch.set_num_threads(1)
for command in sys.argv[1:]:
    app(command.split(), standalone_mode=False)
"""


def without_measurements(value):
    if isinstance(value, dict):
        return {name: without_measurements(inner) for name, inner in value.items() if name not in MEASURED}
    return [without_measurements(inner) for inner in value] if isinstance(value, list) else value


def contents(file):
    """The bytes of a file; of tables and records all that was not measured."""
    if file.suffix == ".json":
        return without_measurements(json.loads(file.read_text()))
    if file.suffix == ".csv":
        with file.open(newline="") as lines:
            return [without_measurements(row) for row in csv.DictReader(lines)]
    return file.read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders that two runs wrote, run by run; names are hashed otherwise in each."""
    runs = []
    for seed in ("1", "2"):
        folder = tmp_path_factory.mktemp("run")
        commands = [f"{command} --out {name}" for name, command in COMMANDS.items()]
        paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *commands], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        runs.append(folder)
    return runs


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_writes_the_same_files(written, command):
    one, other = (run / command for run in written)
    names = sorted(path.name for path in one.iterdir())
    assert len(names) == 4 and sorted(path.name for path in other.iterdir()) == names
    for name in names:
        assert contents(one / name) == contents(other / name), name


def test_manifests_say_what_numbers_depend_on(written):
    manifest = json.loads((written[0] / "prune" / "manifest.json").read_text())
    results = json.loads((written[0] / "compare" / "results.json").read_text())
    for run in (manifest, results["runs"][0]):
        assert run["seed"] == 3 and {"python", "torch", "snows-core", "numpy"} <= run["versions"].keys()
        assert run["threads"] == 1 and run["device"] == "cpu" and "commit" in run
    for source, count in ((manifest["source"], 32), (results["source"], 32)):
        assert len(set(source["calibration"]["indices"])) == count and source["calibration"]["split"] == "train"
    assert sorted(manifest["calibration"]["order"]) == list(range(32))
