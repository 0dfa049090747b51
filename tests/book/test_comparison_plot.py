"""The drawing of a comparison: every cell that is done, ties hollow, intervals as bars."""

from __future__ import annotations

import pytest
import torch

from snows_core.book.comparison_plot import draw_comparison
from snows_core.comparison import Cell, Comparison, Row


@pytest.fixture
def table():
    right = torch.ones(100, dtype=torch.float64)
    less, little = right.clone(), right.clone()
    less[:60], little[:1] = 0.0, 0.0
    rows = {}
    for number, (mask, update, answers) in enumerate(
        [("magnitude", "none", less), ("magnitude", "snows", right), ("wanda", "none", little)]
    ):
        kl = torch.rand(100, dtype=torch.float64) * 10**-number
        rows[Cell("1:4", mask, update)] = Row("done", values={"accuracy": answers, "kl": kl})
    rows[Cell("1:4", "wanda", "snows")] = Row("crashed", "RuntimeError: no")
    return Comparison(rows, {}).table


def test_every_cell_that_is_done_is_drawn_and_ties_are_hollow(table):
    figure = draw_comparison(table, dense=99.0)
    accuracy, divergence = figure.axes
    assert [text.get_text() for text in accuracy.get_xticklabels()] == ["magnitude", "wanda"]
    assert accuracy.get_title() == "1:4" and "KL" in divergence.get_ylabel() and divergence.get_yscale() == "log"
    drawn = [line for line in accuracy.lines if line.get_markerfacecolor() != "white" and len(line.get_ydata()) == 2]
    points = sorted(float(y) for line in drawn for y in line.get_ydata() if line.get_marker() in ("v", "o"))
    assert points == [40.0, 99.0]
    hollow = [float(y) for line in accuracy.lines if line.get_markerfacecolor() == "white" for y in line.get_ydata()]
    assert hollow == [99.0], "the one tie"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["dense", "none", "snows"]


def test_a_table_without_any_result_is_drawn_empty(table):
    figure = draw_comparison(table[table["status"] == "crashed"].dropna(axis=1, how="all"))
    assert len(figure.axes) == 1 and not figure.axes[0].lines
