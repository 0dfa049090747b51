"""snows.compare killed at any moment: the same call goes on with the cells that are left, to the same table."""

import signal

import pandas as pd
import pytest
from killed_runs import compare, run

COLUMNS = ["pattern", "mask", "update", "status", "accuracy", "agreement", "kl", "sparsity", "loss", "image_products"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(compare, out) == 0
    return pd.read_csv(out / "results.csv")


@pytest.mark.parametrize("counts", [(1, 4, 5), (2, 3, 9)])  # three files a cell, eight cells
def test_a_comparison_killed_between_any_two_files_goes_on(whole, tmp_path, counts):
    out = tmp_path / "out"
    for count in counts:
        assert run(compare, out, count) == -signal.SIGKILL
    assert run(compare, out) == 0
    again = pd.read_csv(out / "results.csv")
    assert len(again) == 8 and (again["status"] == "done").all()
    columns = [name for name in COLUMNS if name in whole]
    assert again[columns].equals(whole[columns]) and {"kl", "sparsity", "loss"} <= set(columns)
    assert sorted(path.name for path in out.iterdir()) == ["per_image.safetensors", "results.csv", "results.json"]
