"""What is one's own: a folder of images, one part of it alone or under other names, and a network with its weights."""

import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snows_core
from snows_core.errors import SnowsError
from snows_core.zoo import experiment, load_data, load_folder, load_weights

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def own(tmp_path, make_images):
    """Return a function that writes 10 images a class under each of some folders, and loads the whole."""

    def load(*parts, per_class=10, **options):
        for part in parts:
            for name in CLASSES:
                make_images(tmp_path / part / name, per_class)
        return load_folder(tmp_path, image_size=8, **options)

    return load


def files(split):
    return [split.dataset.samples[int(i)] for i in split.indices]


def parts_of(split):
    return {path.split(os.sep)[-3] for path, _ in files(split)}


@pytest.mark.parametrize(
    ("share", "testing"), [(None, 6), (0.2, 6), (0.5, 15), (0.8, 24), (1 / 3, 10), (1e-9, 1), (0.95, 29)]
)
def test_a_val_alone_is_shared_out_over_all_classes_and_no_image_is_in_both(own, share, testing):
    bundle = own("val", test_share=share)
    train, test = files(bundle.train), files(bundle.test)
    assert len(test) == testing and len({*train, *test}) == len(train) + len(test) == 30
    assert bundle.classes == list(CLASSES) and bundle.held_out and bundle.labelled
    counts = [sum(label == number for _, label in test) for number in range(3)]
    assert max(counts) - min(counts) <= 1, "each class gives its share"
    assert all(CLASSES[label] == path.split(os.sep)[-2] for path, label in train + test)
    words = "every fifth of them" if share in (None, 0.2) else f"{testing} of them set aside"
    assert words in bundle.source


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5, float("nan"), "half"])
def test_a_share_that_leaves_nothing_is_refused(own, share):
    with pytest.raises(SnowsError, match=r"^test_share: got .*; expected a number between 0 and 1"):
        own("val", test_share=share)


def test_a_share_that_leaves_no_image_to_calibrate_on_is_refused(own):
    with pytest.raises(SnowsError, match=r"^test_share: got 0.999; expected a share that leaves one of 3 images"):
        own("val", per_class=1, test_share=0.999)


def test_what_is_divided_already_stays_so(own, tmp_path):
    bundle = own("train", "val", test_share=0.5)
    assert (parts_of(bundle.train), parts_of(bundle.test)) == ({"train"}, {"val"})
    assert len(load_folder(tmp_path / "val", image_size=8, test_share=0.5).test) == 15
    with pytest.raises(SnowsError, match=r"^test_share: got 0.5; expected None, as 'digits' is divided already"):
        experiment("digits-resnet20").load_data(test_share=0.5)


def test_a_folder_is_that_of_its_address(own, tmp_path):
    bundle, same = own("val"), load_data(f"folder:{tmp_path}", image_size=8)
    assert (bundle.name, files(bundle.train), files(bundle.test)) == (same.name, files(same.train), files(same.test))


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_images_to_judge_on_may_be_called_in_four_ways(own, name):
    bundle = own("train", name)
    assert (parts_of(bundle.train), parts_of(bundle.test)) == ({"train"}, {name})
    assert f"as divided into train and {name}" in bundle.source and bundle.classes == list(CLASSES)


def test_val_and_test_without_train_are_two_parts_and_no_classes(own):
    bundle = own("val", "test")
    assert (parts_of(bundle.train), parts_of(bundle.test)) == ({"val"}, {"test"}) and bundle.held_out
    assert bundle.classes == list(CLASSES) and (len(bundle.train), len(bundle.test)) == (30, 30)


def test_folders_without_images_beside_a_val_change_nothing(own, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    bundle = own("val")
    assert bundle.classes == list(CLASSES) and (len(bundle.train), len(bundle.test)) == (24, 6)


def test_a_val_of_loose_images_has_no_labels(tmp_path, make_images):
    make_images(tmp_path / "val", 10)
    bundle = load_folder(tmp_path, image_size=8, test_share=0.7)
    assert not bundle.labelled and bundle.classes == [] and (len(bundle.train), len(bundle.test)) == (3, 7)


def test_images_of_a_train_alone_were_not_held_out(own):
    assert not own("train").held_out


def test_an_experiment_hands_the_share_on(own, tmp_path):
    own("val")
    bundle = experiment("mobilenetv2").load_data(data=f"folder:{tmp_path}", test_share=0.8)
    assert (len(bundle.train), len(bundle.test)) == (6, 24)


class Own(nn.Module):
    """A class of somebody's: a skip connection, one activation for all, and a head without a layer."""

    def __init__(self, classes):
        super().__init__()
        self.act = nn.SiLU()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.narrow, self.skip = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.uneven = nn.Conv2d(6, 8, 3, padding=1)
        self.classes = nn.Linear(8, classes)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act(x + self.conv(x))
        x = self.act(self.uneven(self.act(self.narrow(x) + self.skip(x))))
        return F.linear(F.normalize(x.amax((2, 3))), F.normalize(self.classes.weight))


def test_an_own_class_with_own_weights_on_an_own_val_goes_from_file_to_file(own, tmp_path):
    torch.manual_seed(0)
    trained, file = Own(3), tmp_path / "own.pth"
    torch.save(
        {"epoch": 9, "state_dict": {f"module.{name}": value for name, value in trained.state_dict().items()}}, file
    )
    dense = load_weights(Own(3), file)
    assert not dense.training and all(map(torch.equal, dense.state_dict().values(), trained.state_dict().values()))
    with pytest.raises(SnowsError, match=rf"weights: got '{file}' with .* 2 wrongly shaped tensors \('classes.weight'"):
        load_weights(Own(5), file)

    bundle = own("val", num_classes=3, test_share=0.8)
    images, labels = bundle.test_tensors()
    result = snows_core.prune(dense, bundle.train.tensors()[0], "1:4", k=2, effort="quick", progress=False)
    reasons = dict(zip(result.report["layer"], result.report["reason"], strict=True))
    assert [name for name, reason in reasons.items() if not reason] == ["conv", "narrow", "skip"]
    assert reasons["stem"] == "first layer (reads the image)"
    assert reasons["uneven"] == "6 inputs do not divide into groups of 4"
    assert reasons["classes"] == "used in 'normalize', not as the weight of a layer"
    found = snows_core.evaluate(result.model, images, labels, reference=dense)
    assert found.images == 24 and found.kl is not None and found.accuracy is not None

    result.save(tmp_path / "pruned")
    plain = load_weights(Own(3), tmp_path / "pruned" / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(plain(images), result.model(images))
