"""Recorded tables: read from a checkout, absent without one, and missed where a checkout lacks them."""

from __future__ import annotations

import pytest

from snows_core.book import recorded_table
from snows_core.errors import SnowsError


def test_a_table_of_the_checkout_is_read_with_its_empty_texts(tmp_path):
    (tmp_path / "a.csv").write_text("start,norm,kl\nnone,,0.5\n")
    table = recorded_table("a.csv", tmp_path)
    assert table.to_dict("records") == [{"start": "none", "norm": "", "kl": 0.5}]


def test_without_a_checkout_there_is_no_row(tmp_path):
    assert recorded_table("figures/int8/efficientnet-lite0.csv", tmp_path).empty


def test_a_checkout_that_lacks_the_table_says_so(tmp_path):
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(SnowsError, match=r"'b\.csv', which is no file"):
        recorded_table("b.csv", tmp_path)


@pytest.mark.parametrize("name", ["figures/finetune/resnet20.csv", "figures/int8/efficientnet-lite0.csv"])
def test_the_records_that_a_notebook_checks_are_in_the_repository(name):
    assert {"kl", "commit"} <= set(recorded_table(name).columns)
