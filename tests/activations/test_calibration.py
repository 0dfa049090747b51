"""calibration.py: images in any form, checked once, and every bad input has one clear error."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from toys import random_images, small_resnet

from snows_core.activations import calibration
from snows_core.activations.calibration import FEW, calibration_parts, first_images, shuffled
from snows_core.errors import SnowsError
from snows_core.network.example import run_on_example

IMAGES = random_images(70, dtype=torch.float32)


def together(source, **options):
    return torch.cat(calibration_parts(source, **options))


def test_tensors_loaders_and_iterables_give_the_same_images():
    labels = torch.arange(70)
    sources = [
        IMAGES,
        DataLoader(TensorDataset(IMAGES, labels), batch_size=16),
        DataLoader(TensorDataset(IMAGES), batch_size=7),
        list(IMAGES.split(9)),
        (part for part in IMAGES.split(33)),
        [(part, "label") for part in IMAGES.split(50)],
        [{"pixel_values": part, "labels": labels} for part in IMAGES.split(50)],
    ]
    for source in sources:
        assert torch.equal(together(source), IMAGES)


def test_a_limit_takes_the_first_images_and_reads_no_further():
    read = []

    def endless():
        while True:
            read.append(1)
            yield IMAGES[:20]

    assert len(together(endless(), limit=50)) == 50
    assert len(read) == 3
    assert torch.equal(together(IMAGES, limit=40), IMAGES[:40])


def test_a_source_without_an_end_is_refused_and_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(calibration, "MANY", 200)

    def endless():
        while True:
            yield IMAGES

    with pytest.raises(SnowsError, match=r"images: got more than 210 images .*; expected .*max_images=512"):
        calibration_parts(endless())
    assert len(together([IMAGES] * 4)) == 280, "a list has a length"


def test_a_source_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(calibration, "free_memory", lambda device: 3.0 * IMAGES.numel() * 4)
    assert len(together([IMAGES])) == 70
    with pytest.raises(SnowsError, match=r"images: got more than 140 images .*max_images="):
        calibration_parts([IMAGES] * 4)


def test_few_images_warn_with_the_number_and_enough_do_not():
    with pytest.warns(UserWarning, match=r"images: only 5 calibration images; .* below 32"):
        calibration_parts(IMAGES[:5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibration_parts(IMAGES[:FEW])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_are_laid_out_once_in_a_seeded_order(layout):
    like = torch.empty(1, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=layout)
    parts = list(IMAGES.split(33))
    whole, order = shuffled(parts, 5, like)
    assert parts == [], "the parts are let go on the way"
    assert sorted(order.tolist()) == list(range(70)) != order.tolist()
    assert torch.equal(whole, IMAGES[order].double()) and whole.is_contiguous(memory_format=layout)
    assert torch.equal(shuffled([IMAGES], 5, like)[1], order) and not torch.equal(shuffled([IMAGES], 6, like)[1], order)
    whole.zero_()
    assert IMAGES.any(), "memory of its own, also where the order is the given one"


def test_the_first_images_come_from_as_many_parts_as_it_takes():
    assert torch.equal(first_images(list(IMAGES.split(1)), 5), IMAGES[:5])
    assert torch.equal(first_images([IMAGES], 100), IMAGES)


BAD = {
    "one image without batch axis": (
        IMAGES[0],
        r"images: got shape \(3, 8, 8\); expected \(N, C, H, W\)\. Add",
    ),
    "flat images": (IMAGES.flatten(1), r"images: got shape \(70, 192\); expected \(N, C, H, W\)"),
    "bytes": ((IMAGES * 9).byte(), r"images: got dtype torch\.uint8; expected a floating-point dtype, .*normalise"),
    "none at all": (IMAGES[:0], r"images: got 0 images; expected at least one"),
    "an empty list": ([], r"images: got no batches; expected at least one image"),
    "an empty loader": (DataLoader(TensorDataset(IMAGES[:0])), r"images: got no batches; expected at least one image"),
    "a number": (3, r"images: got int; expected a tensor \(N, C, H, W\), a DataLoader or batches"),
    "a path": ("images.pt", r"images: got .*str.*; expected tensors \(N, C, H, W\), or \(images, labels\)"),
    "other dictionaries": ([{"what": IMAGES}], r"images: got .*; expected tensors"),
    "single images in a list": ([IMAGES[0]], r"images: got shape \(3, 8, 8\); expected \(N, C, H, W\)"),
    "two sizes": ([IMAGES, IMAGES[:, :, :4]], r"images: got shapes \(3, 8, 8\) and \(3, 4, 8\); expected one shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_are_no_calibration_images_is_refused(name):
    images, message = BAD[name]
    with pytest.raises(SnowsError, match=message):
        calibration_parts(images)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_refused_with_their_number(poison):
    images = IMAGES.clone()
    images[3, 0, 1, 1] = images[40, 2, 0, 0] = poison
    for source in (images, list(images.split(8))):
        with pytest.raises(SnowsError, match=r"images: got 2 images with NaN or infinite values; expected finite"):
            calibration_parts(source)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_limits_that_cannot_be_meant_are_refused(limit):
    with pytest.raises(SnowsError, match=r"max_images: got .*; expected an integer >= 1 or None"):
        calibration_parts(IMAGES, limit)


@pytest.mark.parametrize(
    "images, got",
    [
        (random_images(2, channels=1), r"got shape \(2, 1, 8, 8\) of torch\.float64"),
        (random_images(2, dtype=torch.float32), r"got shape \(2, 3, 8, 8\) of torch\.float32"),
    ],
)
def test_images_that_the_model_refuses_are_named_with_shape_dtype_and_reason(images, got):
    with pytest.raises(SnowsError, match=rf"images: {got}, which the model refuses \(.+\)\. Use the channels, size"):
        run_on_example(small_resnet(), images)


def test_what_the_model_returns_is_returned_whatever_it_is():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x + 1, x

    first, second = run_on_example(Pair(), IMAGES[:2])
    assert torch.equal(first, IMAGES[:2] + 1) and torch.equal(second, IMAGES[:2])
