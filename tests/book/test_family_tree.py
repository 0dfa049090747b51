"""The family tree: every method of the table once, on its branch and at its year, drawn as what it gives."""

from __future__ import annotations

import matplotlib.colors as colors
import pandas as pd
import pytest

import snows_core as snows
from snows_core.book import family_tree, plots
from snows_core.book.family_tree import BRANCHES, OTHERS, looks_at


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "year": [1989, 2017, 2017, 2024, 2025, 2025],
            "gives": ["mask", "mask, weights", "weights", "mask", "weights", "channels"],
            "needs": [
                "images",
                "the Gram matrix of the layer's input",
                "the Gram matrix of the layer's input",
                "the norms of the inputs",
                "the Gram matrix, and the K operations behind the layer",
                "a crystal ball",
            ],
        },
        index=["obd", "obs", "layerwise", "wanda", "snows", "seer"],
    )


def leaves(figure):
    """Return name to (branch, year, colour of the marker under it)."""
    ax = figure.axes[0]
    years = [text.get_text() for text in ax.get_xticklabels()]
    heights = dict(zip(ax.get_yticks(), (text.get_text() for text in ax.get_yticklabels()), strict=True))
    marks = {}
    for line in ax.lines:
        if line.get_marker() not in ("None", "", None) and len(line.get_xdata()):
            marks[float(line.get_xdata()[0]), float(line.get_ydata()[0])] = line.get_color()
    assert len(marks) == len(ax.texts), "one marker a method, none on another"
    found = {}
    for text in ax.texts:
        x, y = (float(value) for value in text.xy)
        base = max(height for height in heights if height <= y + 1e-9)
        found[text.get_text()] = heights[base], years[round(x)], marks[x, y]
    return found


def colour(style):
    return plots.style(style)["color"]


def test_each_method_stands_on_its_branch_at_its_year_in_the_colour_of_what_it_gives(table):
    found = leaves(family_tree(table))
    assert found == {
        "obd": ("the network's loss", "1989", colour("magnitude")),
        "obs": ("the layer's input", "2017", colour("SNOWS")),
        "layerwise": ("the layer's input", "2017", colour("layer-wise")),
        "wanda": ("the layer's input", "2024", colour("magnitude")),
        "snows": ("the operations behind", "2025", colour("layer-wise")),
        "seer": (OTHERS, "2025", colour("SNOWS")),
    }
    assert len({colors.to_hex(look) for _, _, look in found.values()}) == 3


def test_years_are_those_that_occur_and_the_legend_what_is_given(table):
    figure = family_tree(table[table["gives"] != "weights"].drop("seer"))
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1989", "2017", "2024"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mask alone", "both"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["the network's loss", "the layer's input"]


def test_all_methods_of_the_package_have_a_branch_of_their_own_kind():
    table = snows.methods()
    found = leaves(family_tree(table))
    assert set(found) == set(table.index)
    assert {branch for branch, _, _ in found.values()} >= set(BRANCHES)
    for name, (branch, year, _) in found.items():
        assert (branch, year) == (looks_at(table.loc[name, "needs"]), str(table.loc[name, "year"]))
    assert found["magnitude"][0] == "the weights alone" and found["woodfisher"][0] == "the network's loss"


def test_labels_of_all_methods_lie_apart():
    figure = family_tree(snows.methods())
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
