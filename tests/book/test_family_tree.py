"""The family tree: every method of the table once, on its branch and at its year, drawn as what it gives."""

from __future__ import annotations

import matplotlib.colors as colors
import pandas as pd
import pytest

import snows_core as snows
from snows_core.book import family_tree, plots
from snows_core.book.family_tree import BRANCHES, NAMES, OTHERS, looks_at


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
    """Return name to (branch, year, colour of the marker under it); the words on variants have no marker."""
    ax = figure.axes[0]
    names = {shown: name for name, shown in NAMES.items()}
    texts = [text for text in ax.texts if text.get_gid() != "variants"]
    years = [text.get_text() for text in ax.get_xticklabels()]
    branches = (text.get_text().replace("\n", " ") for text in ax.get_yticklabels())
    heights = dict(zip(ax.get_yticks(), branches, strict=True))
    marks = {}
    for line in ax.lines:
        if line.get_marker() not in ("None", "", None) and len(line.get_xdata()):
            marks[float(line.get_xdata()[0]), float(line.get_ydata()[0])] = line.get_color()
    assert len(marks) == len(texts), "one marker a method, none on another"
    found = {}
    for text in texts:
        x, y = (float(value) for value in text.xy)
        base = max(height for height in heights if height <= y + 1e-9)
        found[names.get(text.get_text(), text.get_text())] = heights[base], years[round(x)], marks[x, y]
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
    assert [text.get_text() for text in ax.get_yticklabels()] == ["the network's\nloss", "the layer's\ninput"]


def test_all_methods_of_the_package_have_a_branch_of_their_own_kind():
    table = snows.methods()
    figure = family_tree(table)
    found = leaves(figure)
    variants = {name for name in table.index if name.startswith("snows-")}
    assert variants and set(found) == set(table.index) - variants - {"none"}
    (words,) = (text.get_text() for text in figure.axes[0].texts if text.get_gid() == "variants")
    assert all(name.removeprefix("snows-") in words for name in variants)
    assert {branch for branch, _, _ in found.values()} >= set(BRANCHES)
    for name, (branch, year, _) in found.items():
        assert (branch, year) == (looks_at(table.loc[name, "needs"]), str(table.loc[name, "year"]))
    assert found["magnitude"][0] == "the weights alone" and found["woodfisher"][0] == "the network's loss"


def test_labels_of_all_methods_lie_apart_and_are_readable_at_640_pixels():
    plots.theme()
    figure = family_tree(snows.methods())
    figure.canvas.draw()
    ax = figure.axes[0]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    dots = [
        ax.transData.transform(point) for line in ax.lines if line.get_marker() == "o" for point in line.get_xydata()
    ]
    assert dots and not [box for box in boxes for x, y in dots if box.contains(x, y)], "a name on a marker"
    smallest = min(text.get_fontsize() for text in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()])
    assert smallest / 72 * 640 / figure.get_figwidth() > 8, "letters of less than eight pixels"
