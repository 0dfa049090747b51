"""The picture of the method says what the loss is, fades what a segment does not have, and its file is fresh."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pictures
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import snows_core as snows
from snows_core.book import method_picture, plots
from snows_core.book.method_picture import FADED, LAYER_WISE, MASK, SNOWS, TAPS


@pytest.fixture(autouse=True)
def usual_settings():
    """Draw as a fresh process does: other tests set the notebooks' theme."""
    with plt.rc_context():
        plt.rcdefaults()
        yield


def words(figure: Figure) -> list[Text]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def terms(figure: Figure) -> list[Text]:
    return [text for text in words(figure) if "Vert" in text.get_text()]


def test_there_is_one_term_for_every_operation_of_the_segment():
    found = [re.findall(r"c_(\d)|l:l\+?(\d?)|Y_\{l\+?(\d?)\}", term.get_text()) for term in terms(method_picture())]
    indices = [["".join(groups) or "0" for groups in term] for term in found]
    assert indices == [[str(j)] * 3 for j in range(len(TAPS))]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_what_lies_behind_the_last_operation_fades(k):
    figure = method_picture(highlight=k)
    assert [term.get_color() for term in terms(figure)] == [LAYER_WISE, SNOWS, SNOWS, SNOWS][: k + 1] + [FADED] * (
        3 - k
    )
    said = [text.get_text() for text in words(figure) if "SNOWS" in text.get_text()]
    assert [f"$K={k}$" in text for text in said] == [True] * bool(k)  # K = 0 is the layer-wise error, not SNOWS


def test_nothing_fades_unless_asked():
    assert pictures.digest(method_picture()) == pictures.digest(method_picture(highlight=3))
    assert pictures.digest(method_picture()) != pictures.digest(method_picture(highlight=2))


@pytest.mark.parametrize("width", [6.4, 9.0])
def test_no_words_run_into_one_another_or_leave_the_picture(width):
    figure = method_picture(width=width)
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in words(figure)]
    for number, (text, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
        for other, there in boxes[:number]:
            assert not box.overlaps(there), (text, other)


def test_words_are_large_enough_where_a_page_shows_640_pixels():
    sizes = [text.get_fontsize() * 640 / 72 / 9.0 for text in words(method_picture(width=9.0))]
    assert min(sizes) >= 10  # pixels


def test_the_mask_keeps_half_of_the_weights():
    assert sum(row.count("1") for row in MASK) * 2 == sum(len(row) for row in MASK)


@pytest.mark.parametrize(("given", "named"), [({"highlight": 4}, "highlight"), ({"width": 0}, "width")])
def test_mistakes_are_named(given, named):
    with pytest.raises(snows.SnowsError, match=named):
        method_picture(**given)


def test_the_committed_file_is_what_the_code_draws(tmp_path):
    assert pictures.is_fresh(pictures.METHOD, method_picture()), "run: python tools/pictures.py"
    assert not pictures.is_fresh(pictures.METHOD, method_picture(highlight=2))
    other = tmp_path / "other.png"
    pictures.write(other, method_picture(highlight=2))
    with Image.open(other) as picture, Image.open(pictures.METHOD) as committed:
        assert picture.info[pictures.DRAWING] != committed.info[pictures.DRAWING]


def test_the_pixels_are_looked_at_too(tmp_path):
    blank = tmp_path / "blank.png"
    with Image.open(pictures.METHOD) as committed:
        about = pictures.PngInfo()
        about.add_text(pictures.DRAWING, committed.info[pictures.DRAWING])
        Image.new("RGB", committed.size, "white").save(blank, pnginfo=about)
    assert not pictures.is_fresh(blank, method_picture())


def test_the_theme_of_the_notebooks_does_not_make_it_warn(recwarn):
    with plt.rc_context({"figure.constrained_layout.use": True}):
        plots.png(method_picture())
    assert not [warning for warning in recwarn if "layout" in str(warning.message)]
