"""recorded_grids.py: comparisons that were recorded are read, counted and drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from snows_core.book import by_update, count_improved, draw_grids, draw_updates, is_recorded, read_grids
from snows_core.book.records.recorded_grids import published_accuracy

ROWS = [  # pattern, mask, update, status, KL
    ("0.8", "magnitude", "none", "done", 2.0),
    ("0.8", "magnitude", "layerwise", "done", 0.4),
    ("0.8", "magnitude", "own", "not applicable", None),
    ("0.8", "magnitude", "snows", "done", 0.3),
    ("0.8", "obc", "none", "done", 1.0),
    ("0.8", "obc", "layerwise", "done", 0.1),
    ("0.8", "obc", "own", "done", 0.2),
    ("0.8", "obc", "snows", "done", 0.15),
]


@pytest.fixture
def folder(tmp_path):
    names = ["pattern", "mask", "update", "status", "kl"]
    for grid in ("one", "other"):
        (tmp_path / grid).mkdir()
        pd.DataFrame(ROWS, columns=names).assign(accuracy=50.0).to_csv(tmp_path / grid / "results.csv", index=False)
    return tmp_path


def test_done_cells_are_read_with_the_name_of_their_comparison(folder):
    cells = read_grids(folder)
    assert len(cells) == 2 * 7 and set(cells["grid"]) == {"one", "other"}
    assert set(cells["pattern"]) == {"0.8"}, "a pattern is a text"
    assert read_grids(folder / "nowhere").empty


def test_a_comparison_that_was_stopped_is_not_recorded(folder):
    assert is_recorded(folder / "one") and not is_recorded(folder / "nowhere")
    for status in ("not run", "crashed"):
        cells = pd.read_csv(folder / "one" / "results.csv").assign(status=status)
        cells.to_csv(folder / "other" / "results.csv", index=False)
        assert not is_recorded(folder / "other")


def test_updates_stand_side_by_side_in_their_order(folder):
    wide = by_update(read_grids(folder), "kl")
    assert list(wide) == ["none", "layerwise", "own", "snows"]
    assert wide.loc[("one", "0.8", "obc")].tolist() == [1.0, 0.1, 0.2, 0.15]


def test_pairs_are_counted_once_a_mask_and_another_update(folder):
    """In each folder: magnitude 2 of 2, OBC 2 of 3."""
    assert count_improved(read_grids(folder)) == (8, 10)


def test_published_numbers_stand_beside_the_method_they_are_of():
    assert published_accuracy("global", "global:0.7", "chita") == 84.12
    assert published_accuracy("stages", "global:0.7", "chita") == 90.38
    assert published_accuracy("stages", "global:0.7", "magnitude") is None
    assert published_accuracy("global", "global:0.7", "mfac") is None
    assert published_accuracy("nm", "2:4", "magnitude") is None


def test_every_update_is_drawn_where_it_is(folder):
    kl = by_update(read_grids(folder), "kl").loc[("one", "0.8")]
    _, ax = plt.subplots()
    draw_updates(ax, kl, "title")
    drawn = {line.get_label(): list(line.get_xdata()) for line in ax.get_lines()}
    assert drawn["snows"] == [0.3, 0.15] and drawn["none"] == [2.0, 1.0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["magnitude", "obc"]
    plt.close("all")


def test_panels_are_the_patterns_asked_for(folder):
    figure = draw_grids(read_grids(folder), [("one", "0.8"), ("other", "0.8"), ("one", "0.8")])
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == ["0.8"] * 3
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["magnitude", "obc"]  # the worst first
    plt.close("all")
