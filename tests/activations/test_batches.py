"""batches.py: images and labels out of everything that loaders yield, or one error."""

from collections import OrderedDict, UserDict, namedtuple

import numpy as np
import pytest
import torch

from snows_core.activations.batches import IMAGE_KEYS, LABEL_KEYS, split_batch
from snows_core.errors import SnowsError

X = torch.rand(4, 3, 5, 5)
Y = torch.arange(4)
Pair = namedtuple("Pair", "image label")

FORMS = {
    "pair": (X, Y),
    "list": [X, Y],
    "named tuple": Pair(X, Y),
    "triple": (X, Y, ["meta"] * 4),
    "ordered": OrderedDict(label=Y, image=X),
    "user dictionary": UserDict(inputs=X, targets=Y),
    "both image keys, one no tensor": {"images": ["a"] * 4, "x": X, "y": Y},
    **{f"{image}, {label}": {image: X, label: Y} for image in IMAGE_KEYS for label in LABEL_KEYS},
}


@pytest.mark.parametrize("name", FORMS)
def test_images_and_labels_come_out_of_every_form(name):
    images, labels = split_batch(FORMS[name], strict=True)
    assert images is X and labels is Y


@pytest.mark.parametrize("batch", [X, (X,), [X], (X, None), {"x": X}, {"x": X, "labels": None}])
def test_images_without_labels(batch):
    images, labels = split_batch(batch, strict=True)
    assert images is X and labels is None


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], (0, 1, 2, 3), np.arange(4)])
def test_numbers_become_a_tensor(labels):
    assert split_batch((X, labels), strict=True)[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("labels", [["cat"] * 4, "cat", [{"boxes": X}] * 4, {"boxes": X}])
def test_labels_that_are_no_numbers_are_none_or_an_error(labels):
    assert split_batch((X, labels)) == (X, None)
    with pytest.raises(SnowsError, match=r"labels: got a .*; expected a tensor of class indices \(N,\)"):
        split_batch((X, labels), strict=True)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("images.pt", r"a batch of type str; .*load_data"),
        ([], "a batch of type list that begins with a NoneType"),
        (((X, X), Y), "a batch of type tuple that begins with a tuple of Tensor; .*wrapper that takes the image alone"),
        ((X.numpy(), Y), "begins with a ndarray; .*torch.from_numpy"),
        (X.numpy(), "a batch of type ndarray; .*torch.from_numpy"),
        ({"picture": X}, "a batch of type dict with the keys picture; .*pixel_values, images"),
        ({}, "with the keys none"),
        (None, "a batch of type NoneType"),
    ],
)
def test_everything_else_is_one_error(batch, message):
    with pytest.raises(SnowsError, match=f"photos: got .*{message}") as caught:
        split_batch(batch, "photos")
    assert r"expected tensors (N, C, H, W), or (images, labels) pairs" in str(caught.value)
    assert "\n" not in str(caught.value)
