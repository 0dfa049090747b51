"""Pictures and sentences that a cell shows: committed files wherever the notebook runs, and text with numbers in it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from snows_core.errors import invalid_argument

CHECKOUT = Path(__file__).resolve().parents[2]


def public_address(relative: str) -> str:
    """Return where a file of this repository can be read on the web, at the tag of the installed version.

    Args:
        relative: path in the repository, with ``/``.

    Returns:
        The address of the bare file.

    >>> public_address("figures/method.png").endswith("/figures/method.png")
    True
    """
    about = metadata.metadata("snows-core")
    links = dict(str(line).split(", ", 1) for line in about.get_all("Project-URL") or [])
    return f"{links['Repository'].rstrip('/')}/raw/v{about['Version']}/{quote(relative)}"


def shown_file(relative: str, root: Path = CHECKOUT) -> None:
    """Show a PNG of the repository as the output of a cell, so that every viewer of notebooks has it.

    Without a checkout, as in Colab, where the package alone is installed, the picture is loaded from its public
    address.

    Args:
        relative: path in the repository, with ``/``, for instance ``figures/method.png``.
        root: the checkout.

    Raises:
        SnowsError: when a checkout lacks the file.
    """
    from IPython.display import Image, display

    path = root / relative
    if path.is_file():
        display(Image(data=path.read_bytes(), format="png"))
    elif (root / "notebooks").is_dir():
        raise invalid_argument("relative", f"'{relative}', which is no file", f"a picture in {root}")
    else:
        display(Image(url=public_address(relative)))


def say(text: str) -> None:
    """Show Markdown as the output of a cell: how a measured number gets into a sentence.

    Args:
        text: Markdown, formulas included.
    """
    from IPython.display import Markdown, display

    display(Markdown(text))
