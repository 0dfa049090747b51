"""What stands in for a reader's own weights and images: nothing that judges the network has trained it."""

from __future__ import annotations

import torch
from torch import nn

from snows_core import evaluate
from snows_core.book import train_example, write_example_folder
from snows_core.zoo import load_data, load_folder, load_weights


def simple(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, classes))


def test_the_folder_is_a_val_alone_with_the_test_digits(tmp_path):
    digits = load_data("digits")
    images, labels = digits.test_tensors()
    prepared = {"mean": digits.mean, "std": digits.std, "image_size": 16}
    bundle = load_folder(write_example_folder(tmp_path), test_share=0.8, **prepared)
    assert [file.name for file in tmp_path.iterdir()] == ["val"] and bundle.classes == digits.classes
    assert (len(bundle.train), len(bundle.test)) == (119, 478)
    trained = digits.train.tensors()[0]
    for split in (bundle.train, bundle.test):
        found, own = split.tensors()
        distance = torch.cdist(found.flatten(1), images.flatten(1))
        nearest = distance.argmin(1)
        assert distance.gather(1, nearest[:, None]).max() < 0.2  # half a grey level of 255 in 256 pixels
        assert torch.equal(labels[nearest], own) and len(nearest.unique()) == len(found)
        assert torch.cdist(found.flatten(1), trained.flatten(1)).min() > 0.3, "none of them trained the network"


def test_weights_come_with_an_accuracy_that_other_images_gave(tmp_path):
    torch.manual_seed(0)
    network, file = simple(), tmp_path / "own.pth"
    threads = torch.get_num_threads()
    train_example(network, file, epochs=3)
    assert torch.get_num_threads() == threads and not network.training
    content = torch.load(file, weights_only=True)
    images, labels = load_data("digits").train.tensors()
    found = evaluate(load_weights(simple(), file), images[900:], labels[900:])
    assert (content["accuracy"], content["images"]) == (found.accuracy, found.images) and found.images == 300
    assert found.accuracy > 80
