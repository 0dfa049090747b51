"""two_profiles.py: this run and the record of another stand side by side, the default profile first."""

import pandas as pd
import pytest

from snows_core.book.page import NotebookOutputs
from snows_core.book.records.two_profiles import TwoProfiles

TABLE = pd.DataFrame({"K": [0, 5], "kl": [0.2, None]})


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Return a function that records a table as a profile and gives the page of another."""
    monkeypatch.setenv("SNOWS_FIGURES", str(tmp_path))

    def make(profile, other):
        page = NotebookOutputs("06_what_k_buys", profile)
        page.save_metrics(
            {"a": 1}, seed=0, tables={"t": TABLE}, calibration=[4, 5], seeds=[0, 1], title="CIFAR-10, 1:4"
        )
        return NotebookOutputs("06_what_k_buys", other), tmp_path

    return make


@pytest.mark.parametrize("profile,other,first", [("cifar", "quick", "here"), ("digits", "cifar", "CIFAR-10, 1:4")])
def test_both_sides_stand_in_one_order(recorded, profile, other, first):
    page, root = recorded(profile, other)
    sides = TwoProfiles(page, "here", profile, root)
    both = sides.add("t", TABLE.assign(kl=[0.1, 0.05]))
    assert next(iter(both)) == first and both["here"]["kl"].tolist() == [0.1, 0.05]
    pd.testing.assert_frame_equal(both["CIFAR-10, 1:4"], TABLE)
    assert list(sides.tables) == ["t"] and list(sides.add("new", TABLE)) == ["here"]
    assert f"profile {profile}, 2 calibration images a set, 2 sets" in sides.words()


def test_without_a_record_there_is_this_run_alone(tmp_path):
    sides = TwoProfiles(NotebookOutputs("06_what_k_buys"), "here", "cifar", tmp_path)
    assert list(sides.add("t", TABLE)) == ["here"] and "no record" in sides.words()
