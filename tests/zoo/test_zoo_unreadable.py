"""Images that no decoder reads: a few are left out and counted, many are one error; labels and positions stay right."""

from __future__ import annotations

import os
import signal
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from snows_core.errors import SnowsError
from snows_core.zoo import image_modes, reading, unreadable
from snows_core.zoo.bundle import Split
from snows_core.zoo.data import load_data
from snows_core.zoo.folder import FolderImages
from snows_core.zoo.unreadable import Unreadable, UnreadableImage


def bomb(content):
    """Return a PNG whose header promises 50,000 x 50,000 pixels."""
    return content[:16] + struct.pack(">II", 50_000, 50_000) + content[24:]


SPOILT = {
    "a cut PNG": ("0.png", lambda content: content[: len(content) // 2]),
    "a cut JPEG": ("0.jpg", lambda content: content[: len(content) // 2]),
    "no bytes": ("0.png", lambda content: b""),
    "a text": ("0.png", lambda content: b"no image at all"),
    "a bomb": ("0.png", bomb),
    "PostScript": (
        "0.jpg",
        lambda content: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    ),
}


def write(path, shade):
    """Write an image of one grey value, by which it can be told again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(shade).randint(0, 3, (16, 16), dtype=np.uint8)
    Image.fromarray(noise + np.uint8(shade)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Return a folder of three classes with ten images each; shades 10, 20, 30 tell the classes."""
    for label, name in enumerate("abc"):
        for i in range(10):
            write(tmp_path / "images" / name / f"{i}.{'jpg' if i == 5 else 'png'}", 60 * label + 10)
    return tmp_path / "images"


def as_split(folder):
    """Return all images of the folder as one split, with labels and shades that belong together."""
    bundle = load_data(f"folder:{folder}", mean=(0.0,), std=(1.0,), image_size=16)
    samples = sorted(bundle.train.dataset.samples + bundle.test.dataset.samples)
    return Split(FolderImages(samples, bundle.train.dataset.transform, (1, 16, 16)))


def labels_of(images):
    return (images.mean((1, 2, 3)) * 255 / 60).long()


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("workers", [0, 2])
def test_one_image_is_left_out_with_a_warning(folder, kind, workers):
    name, spoil = SPOILT[kind]
    path = folder / "b" / ("5.jpg" if name.endswith("jpg") else "3.png")
    path.write_bytes(spoil(path.read_bytes()))
    at = 10 + int(path.stem)
    split = as_split(folder)
    with pytest.warns(UserWarning, match=f"an image was left out: {path} cannot be read as an image") as told:
        batches = list(split.loader(7, workers))
    assert len([w for w in told if "left out" in str(w.message)]) == 1
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(images) == 29 and torch.equal(labels_of(images), labels)
    assert sorted(labels.tolist()) == [0] * 10 + [1] * 9 + [2] * 10
    assert list(split.dataset.unreadable.reasons) == [at]
    kept = split.readable(torch.tensor([at, 0, at + 1]))
    assert kept.tolist() == [0, at + 1]


def test_tensors_and_samples_keep_labels_and_positions(folder):
    (folder / "b" / "3.png").write_bytes(b"no image")
    split = as_split(folder)
    with pytest.warns(UserWarning, match="left out"):
        images, labels = split.tensors()
    assert len(images) == len(labels) == 29 and torch.equal(labels_of(images), labels)
    images, labels, positions = split.sample(30, seed=3)
    assert len(images) == len(labels) == len(positions) == 29 and 13 not in positions
    again, same = split.tensors(indices=positions)
    assert torch.equal(again, images) and torch.equal(same, labels)
    batches, drawn = split.drawn(30, seed=3, batch_size=1)  # a batch of nothing but that image is left out whole
    assert torch.equal(torch.cat(list(batches)), images) and torch.equal(split.readable(drawn), positions)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_a_few_are_one_error_each_time(folder, workers):
    for i in range(4):
        (folder / "c" / f"{i}.png").write_bytes(b"no image")
    split = as_split(folder)
    for _ in range(2):
        with warnings.catch_warnings(), pytest.raises(SnowsError, match=r"^data: 4 and more of 30 images") as caught:
            warnings.simplefilter("ignore")
            list(split.loader(5, workers))
        text = str(caught.value)
        assert all(str(folder / "c" / f"{i}.png") in text for i in range(3)) and text.count("\n") == 0
        assert "but 3 may be left out" in text and text.endswith("Remove or replace the files.")


@pytest.mark.parametrize(
    ("total", "limit"), [(0, 0), (1, 0), (2, 0), (3, 1), (6, 2), (7, 3), (300, 3), (399, 3), (400, 4), (50_000, 500)]
)
def test_the_limit_is_three_or_one_in_a_hundred_and_never_half(total, limit):
    assert Unreadable(total).limit == limit


def test_warnings_come_at_the_first_the_tenth_and_so_on():
    found = Unreadable(100_000)
    with pytest.warns(UserWarning) as told:
        for index in range(250):
            found.add(index, UnreadableImage(f"data: {index}.png cannot be read as an image (x)."))
            found.add(index, UnreadableImage("data: the same again."))
    assert [str(w.message).split(" cannot")[0] for w in told] == [
        "an image was left out: 0.png",
        "10 images were left out so far, the last one: 9.png",
        "100 images were left out so far, the last one: 99.png",
    ]


def test_what_is_no_matter_of_one_file_is_raised():
    with pytest.raises(SnowsError, match="image_size"):
        unreadable.leave_out(Unreadable(100), 0, SnowsError("image_size: got another."))
    with pytest.raises(UnreadableImage):
        unreadable.leave_out(None, 0, UnreadableImage("data: x."))


def test_all_of_few_images_end_in_one_error(tmp_path):
    for i in range(2):
        write(tmp_path / "a" / f"{i}.png", 10)
    split = as_split(tmp_path)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(SnowsError, match=r"^data: .*0\.png cannot be read"):
        split.tensors()


def test_no_program_is_run_for_a_file(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "x.png").write_bytes(SPOILT["PostScript"][1](b""))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("a program was asked for"))
    with pytest.raises(UnreadableImage):
        image_modes.read_image(tmp_path / "x.png", "L")
    with pytest.raises(UnreadableImage):
        image_modes.mode_of(tmp_path / "x.png")


def killed_in_a_worker(image):
    """End the process that reads, unless it is the test's own."""
    if torch.utils.data.get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(1, 16, 16)


def test_a_worker_that_is_killed_is_one_error(folder):
    split = as_split(folder)
    split.dataset.transform = killed_in_a_worker
    with pytest.raises(SnowsError, match=r"^workers: got one that ended .*workers=0 reads without any") as caught:
        list(split.loader(5, 2))
    assert "\n" not in str(caught.value)


def test_thousands_of_workers_are_refused_before_any_starts(folder):
    with pytest.raises(SnowsError, match=f"workers: got 100000; expected at most {reading.MOST_ASKED}"):
        as_split(folder).loader(5, 100_000)
