"""Show one of the book's animations in a notebook."""

from __future__ import annotations

from snows_core.book.files_shown import shown_file
from snows_core.errors import closest, invalid_argument

NAMES = ("error-travels", "conjugate-gradients", "segment-grows", "mask-forms")
"""The animations that there are."""

FOLDER = "figures/animations"
"""Where the repository keeps them."""


def animation(name: str) -> None:
    """Show an animation as the output of a cell: an animated PNG, which moves without a kernel.

    GitHub, nbviewer, JupyterLab and Colab all play it; a viewer that does not shows its first frame, which is the
    last state. ``figures/animations/<name>-strip.png`` has the main frames side by side, for print.

    Args:
        name: one of ``NAMES``.

    Raises:
        SnowsError: on another name.
    """
    if name not in NAMES:
        raise invalid_argument("name", f"'{name}'", f"one of {', '.join(NAMES)}", closest(name, NAMES))
    shown_file(f"{FOLDER}/{name}.png")
