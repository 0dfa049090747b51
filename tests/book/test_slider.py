"""The slider of the notebooks: its figure follows the control, and no figure stays open."""

import matplotlib.pyplot as plt
import pytest

from snows_core.book.slider import slider

ipywidgets = pytest.importorskip("ipywidgets")


def test_the_figure_follows_the_control():
    drawn = []

    def draw(value):
        drawn.append(value)
        figure, ax = plt.subplots()
        ax.plot([0, value])
        return figure

    plt.close("all")
    control, image = slider(draw, ipywidgets.IntSlider(1, min=0, max=9)).children
    first = bytes(image.value)
    control.value = 7
    assert drawn == [1, 7] and bytes(image.value) != first and bytes(image.value).startswith(b"\x89PNG")
    control.value = 1
    assert bytes(image.value) == first
    assert not plt.get_fignums() and control.continuous_update is False
