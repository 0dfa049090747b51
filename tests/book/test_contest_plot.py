"""contest_plot.py: stairs, not slopes, and what was never reached stands above the budget."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from races import known

from snows_core.book.contests.contest import NEWTON, NO_CURVATURE, curves, layer_table
from snows_core.book.contests.contest_plot import draw_curves, draw_layers, draw_units


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_curves_are_steps_of_each_side():
    table = curves(known(), 8)
    left, right = draw_curves({"one": table, "two": table.assign(median=0.0)}).axes
    assert (left.get_title(), right.get_title()) == ("one", "two")
    assert lines(left)[NEWTON].get_drawstyle() == "steps-post"
    assert max(lines(left)[NEWTON].get_ydata()) == pytest.approx(100) and max(lines(right)[NEWTON].get_ydata()) == 0


def test_units_by_layer_show_what_was_not_reached():
    (ax,) = draw_units({"one": layer_table(known())}, {"one": 8}).axes
    control = lines(ax)[NO_CURVATURE].get_ydata()
    assert control[0] == 3 and control[1] > 8.5
    assert lines(ax)[NEWTON].get_ydata().tolist() == [8, 6]
    assert ax.get_yticklabels()[-1].get_text() == "not\nreached"


def test_layers_have_a_panel_each():
    figure = draw_layers(known(), [NEWTON, NO_CURVATURE], columns=2)
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("a", "b")
    best = lines(first)[NO_CURVATURE]
    assert best.get_drawstyle() == "steps-post" and np.all(np.diff(best.get_ydata()) <= 0)
