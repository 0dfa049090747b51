"""A slider above a figure that follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from snows_core.book.plots import png
from snows_core.errors import SnowsError

if TYPE_CHECKING:
    from ipywidgets import VBox


def slider(draw: Callable[[Any], Figure], control: Any) -> VBox:
    """Return a control with a figure under it that is drawn anew whenever the control moves.

    Unlike ``ipywidgets.interact`` it captures no output of the cell: the figure is an image widget. So it does not
    flicker, and a notebook that is run without a browser cannot wait for an answer that nobody gives.

    Args:
        draw: maps the control's value to a figure.
        control: any ipywidgets control with a ``value``, for instance ``IntSlider(3, min=0, max=9)``.

    Returns:
        The widget; it shows itself as the last line of a cell.

    Raises:
        SnowsError: when ipywidgets is missing.
    """
    try:
        from ipywidgets import Image, VBox
    except ImportError as error:
        raise SnowsError(f"ipywidgets is missing ({error}); run: pip install 'snows-core[book]'") from error

    def picture(value: Any) -> bytes:
        with plt.ioff():  # else the notebook would show the figure a second time
            figure = draw(value)
        content = png(figure)
        plt.close(figure)
        return content

    image = Image(value=picture(control.value), format="png")
    if hasattr(control, "continuous_update"):
        control.continuous_update = False  # draw once it rests
    control.observe(lambda change: setattr(image, "value", picture(change["new"])), names="value")
    return VBox([control, image])
