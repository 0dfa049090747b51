"""Whatever is malformed ends in one clear error that names the argument, and leaves the disk as it was."""

import os
import re

import pytest
from malformed_cases import CASES, compare, net, prune
from malformed_parts import FOLDERS, PARTS, PLACES

import snows_core as snows
from snows_core.errors import SnowsError

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
LONGEST = 1_500
"""Characters of a message: longer ones repeat what came, or list too much."""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Run in an empty folder, and see that nothing is left there."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    yield place
    assert os.listdir(place) == []


@pytest.fixture(scope="module")
def result():
    return prune()


def refused(call, argument, word=""):
    """Call, and see that one error comes, with the argument first, on one line, and a word that tells what is wrong."""
    with pytest.raises(SnowsError) as caught:
        call()
    message = str(caught.value)
    named = message.startswith((f"{argument}: ", f"{argument} of "))
    assert named and word in message and len(message) < LONGEST, message
    if "inputs" not in message:  # a wrapper to copy has several lines
        assert "\n" not in message


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [*CASES, *PARTS], ids=lambda name: re.sub(r" at 0x\w+", "", name))
def test_malformed_input_is_refused_by_its_name(name):
    argument, word, call = (CASES | PARTS)[name]
    refused(call, argument, word)


def test_there_are_enough_cases():
    assert len(CASES) + len(PARTS) + len(FOLDERS) + 3 * len(PLACES) > 500


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_other_content_is_no_result(result, tmp_path, name):
    folder = result.save(tmp_path / "saved")
    file, change = FOLDERS[name]
    change(folder / file)
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    refused(lambda: snows.load(folder), "folder")
    refused(lambda: snows.load(folder, model), "folder")
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("what", ["save", "load", "out"])
@pytest.mark.parametrize("name", PLACES)
def test_a_place_where_no_folder_can_be_is_refused(result, tmp_path, name, what):
    (tmp_path / "file").write_text("mine")
    place = PLACES[name](tmp_path)
    if what == "save":
        refused(lambda: result.save(place), "folder")
    elif what == "load":
        refused(lambda: snows.load(place), "folder")
    elif place is not None:  # out=None writes nothing
        refused(lambda: compare(out=place), "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "here"]
