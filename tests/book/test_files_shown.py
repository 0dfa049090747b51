"""What a cell shows: files of the repository with and without a checkout, and sentences with numbers."""

from __future__ import annotations

import base64

import IPython.display
import pytest

from snows_core.book.files_shown import public_address, say, shown_file
from snows_core.errors import SnowsError

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


@pytest.fixture
def shown(monkeypatch):
    """Return the list of what cells show."""
    found = []
    monkeypatch.setattr(IPython.display, "display", found.append)
    return found


def test_a_file_of_the_checkout_is_inside_the_output(tmp_path, shown):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "a.png").write_bytes(PNG)
    shown_file("a.png", tmp_path)
    assert shown[0].data == PNG and shown[0].format == "png"


def test_without_a_checkout_it_comes_from_the_public_address(tmp_path, shown):
    shown_file("figures/a b.png", tmp_path)
    assert public_address("figures/a b.png") == shown[0].url and shown[0].data is None
    assert "/raw/v" in shown[0].url  # the file itself, not the page about it
    assert public_address("figures/a b.png").startswith("https://github.com/") and "a%20b" in public_address("a b")


def test_a_checkout_that_lacks_the_file_says_so(tmp_path):
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(SnowsError, match=r"'b\.png', which is no file"):
        shown_file("b.png", tmp_path)


def test_a_sentence_is_markdown(shown):
    say("it is **5.0 %**")
    assert isinstance(shown[0], IPython.display.Markdown) and shown[0].data == "it is **5.0 %**"
