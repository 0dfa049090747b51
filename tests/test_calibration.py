"""calibration.py: images in any form, checked once, and every bad input has one clear error."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from toys import random_images, small_resnet

from snows_core.calibration import FEW, calibration_batches, run_on_example
from snows_core.errors import SnowsError

IMAGES = random_images(70, dtype=torch.float32)


def test_tensors_loaders_and_iterables_give_the_same_batches():
    labels = torch.arange(70)
    sources = [
        IMAGES,
        DataLoader(TensorDataset(IMAGES, labels), batch_size=16),
        DataLoader(TensorDataset(IMAGES), batch_size=7),
        list(IMAGES.split(9)),
        (part for part in IMAGES.split(33)),
        [(part, "label") for part in IMAGES.split(50)],
    ]
    for source in sources:
        batches = calibration_batches(source, 32)
        assert [len(batch) for batch in batches] == [32, 32, 6]
        assert torch.equal(torch.cat(batches), IMAGES)


def test_a_limit_takes_the_first_images_and_reads_no_further():
    read = []

    def endless():
        while True:
            read.append(1)
            yield IMAGES[:20]

    assert sum(len(batch) for batch in calibration_batches(endless(), 16, limit=50)) == 50
    assert len(read) == 3
    assert torch.equal(torch.cat(calibration_batches(IMAGES, 16, limit=40)), IMAGES[:40])


def test_few_images_warn_with_the_number_and_enough_do_not():
    with pytest.warns(UserWarning, match=r"images: only 5 calibration images; .* below 32"):
        calibration_batches(IMAGES[:5], 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibration_batches(IMAGES[:FEW], 16)


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
    "a path": ("images.pt", r"images: got a batch of type str; expected tensors \(N, C, H, W\), or \(images, labels\)"),
    "dictionaries": ([{"x": IMAGES}], r"images: got a batch of type dict; expected tensors"),
    "single images in a list": ([IMAGES[0]], r"images: got shape \(3, 8, 8\); expected \(N, C, H, W\)"),
    "two sizes": ([IMAGES, IMAGES[:, :, :4]], r"images: got shapes \(3, 8, 8\) and \(3, 4, 8\); expected one shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_are_no_calibration_images_is_refused(name):
    images, message = BAD[name]
    with pytest.raises(SnowsError, match=message):
        calibration_batches(images, 16)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_refused_with_their_number(poison):
    images = IMAGES.clone()
    images[3, 0, 1, 1] = images[40, 2, 0, 0] = poison
    for source in (images, list(images.split(8))):
        with pytest.raises(SnowsError, match=r"images: got 2 images with NaN or infinite values; expected finite"):
            calibration_batches(source, 16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, r"batch_size: got 0; expected an integer >= 1"),
        ({"batch_size": 8, "limit": 0}, r"max_images: got 0; expected an integer >= 1 or None"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(SnowsError, match=message):
        calibration_batches(IMAGES, **options)


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
