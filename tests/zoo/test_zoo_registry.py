"""The experiments: every row is sound, offline ones run, and mistakes are met by one sentence."""

import dataclasses
import fnmatch
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from snows_core.errors import SnowsError
from snows_core.zoo import EXPERIMENTS, experiment, load_data, sources
from snows_core.zoo.bundle import ArrayImages, DataBundle, Split
from snows_core.zoo.weights import CHECKPOINTS

DIGITS = ["digits-resnet20", "digits-resnet50", "digits-vit-b", "digits-vit-l"]
FLOORS = {"digits-resnet20": 98, "digits-resnet50": 97, "digits-vit-b": 95, "digits-vit-l": 95}
IMAGENET = [name for name, row in EXPERIMENTS.items() if row.profile == "imagenet"]


def test_all_experiments_of_the_plan_are_there():
    wanted = {
        *DIGITS,
        "resnet20",
        "resnet50-cifar100",
        "resnet50",
        "vit_base_patch16_224",
        "vit_large_patch16_224",
        "vit_b_16",
        "vit_l_16",
        "deit_small_patch16_224",
        "deit_base_patch16_224",
        "mobilenetv1",
        "mobilenetv2",
    }
    assert wanted <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_are_complete(name):
    row = EXPERIMENTS[name]
    assert row.name == name and row.title and row.k >= 0 and row.pattern == "2:4"
    assert row.data in ("digits", "cifar10", "cifar100", "imagenette", "imagenet-samples")
    assert row.profile in ("default", "cifar", "imagenet", "imagenet-samples")
    assert row.calibration_images >= 128 and row.batch_size >= 1
    assert len(row.image_shape) == 3
    if name == "vit_small_patch14_saliency":  # a backbone without classes
        assert row.dense_accuracy is None
    else:
        assert 70 < row.dense_accuracy < 100 and row.recorded_on
    if "resnet" in name:
        assert any(fnmatch.fnmatch("layer2.0.downsample.0", glob) for glob in row.exclude)


@pytest.mark.parametrize("name", [name for name, row in EXPERIMENTS.items() if row.model.startswith("torchvision/")])
def test_torchvision_accuracies_are_those_stated_with_the_weights(name):
    row = EXPERIMENTS[name]
    assert row.dense_accuracy == sources.preprocessing(row.model).accuracy == experiment(row.model).dense_accuracy


def test_any_network_of_torchvision_is_compared_with_what_is_stated():
    assert experiment("resnet50").dense_accuracy == 76.13
    assert experiment("torchvision/resnet18").records[0].data == "imagenet"


def test_unknown_experiment_lists_all_nearest_first():
    with pytest.raises(SnowsError, match=r"experiment: got 'resnet2'; expected one of digits-resnet20, .*Nearest: res"):
        experiment("resnet2")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("resnet18", r"timm/resnet18 or torchvision/resnet18\?"),
        ("deit_tiny_patch16_224.fb_in1k", r"timm/deit_tiny_patch16_224.fb_in1k\?"),
        ("squeezenet1_1:IMAGENET1K_V1", r"torchvision/squeezenet1_1:IMAGENET1K_V1\?"),
    ],
)
def test_a_bare_name_of_a_library_is_led_to_its_address(name, advice):
    with pytest.raises(SnowsError, match=f"experiment: got '{name}'; .*Did you mean {advice}$"):
        experiment(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet51", "a network of timm. Nearest: resnet51q"),
        ("timm/resnet50.none", "weights that do not exist.*resnet50.a1_in1k"),
        ("torchvision/resnet19", "a network of torchvision. Nearest: resnet"),
        ("torchvision/resnet50:V9", "one of IMAGENET1K_V1"),
    ],
)
def test_unknown_networks_of_libraries_are_refused(name, message):
    with pytest.raises(SnowsError, match=message):
        experiment(name)


def test_addresses_are_checked():
    with pytest.raises(SnowsError, match="an experiment, timm/<name> or torchvision/<name>"):
        sources.build("tim/resnet50")


def test_any_network_of_a_library_is_an_experiment(monkeypatch):
    row = experiment("timm/test_vit.r160_in1k")
    assert row.image_shape == (3, 160, 160) and row.dense_accuracy is None and row.recorded_on == "not recorded"
    assert row.load_model(pretrained=False)(torch.zeros(1, 3, 160, 160)).shape == (1, 1000)
    monkeypatch.setattr(sources, "_timm_tags", lambda name: [])
    with pytest.raises(SnowsError, match="no trained weights"):
        sources.pretrained("timm/test_vit")


@pytest.mark.parametrize("name", DIGITS)
def test_shipped_checkpoints_reach_what_they_promise(name, no_network):
    row = experiment(name)
    model, bundle = row.load_model(), row.load_data()
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())
    assert row.dense_accuracy >= FLOORS[name]
    metrics = row.check_dense(model, bundle)
    assert metrics.images == 597 and metrics.accuracy >= FLOORS[name]
    assert abs(metrics.accuracy - row.dense_accuracy) <= 0.5
    file = Path(CHECKPOINTS) / f"{name}.safetensors"
    assert file.stat().st_size < 3_000_000


def test_twins_have_the_depth_of_the_originals():
    from timm.models.resnet import Bottleneck
    from timm.models.vision_transformer import Block

    resnet = experiment("digits-resnet50").load_model(pretrained=False)
    assert [
        sum(isinstance(m, Bottleneck) for m in stage)
        for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
    ] == [3, 4, 6, 3]
    for name, blocks in (("digits-vit-l", 24), ("digits-vit-b", 12)):
        model = experiment(name).load_model(pretrained=False)
        assert sum(isinstance(m, Block) for m in model.modules()) == blocks
    widths = [m.in_channels for m in resnet.modules() if isinstance(m, nn.Conv2d) and m is not resnet.conv1]
    assert all(width % 8 == 0 for width in widths), "2:4, 1:4 and 1:8 must fit"


def test_cifar100_resnet50_has_the_small_stem():
    model = experiment("resnet50-cifar100").load_model(pretrained=False)
    assert model.conv1.kernel_size == (3, 3) and model.conv1.stride == (1, 1) and isinstance(model.maxpool, nn.Identity)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 100)


def test_wrong_normalisation_stops_with_its_name():
    row = experiment("digits-resnet20")
    with pytest.raises(SnowsError, match=r"scores .* expected 9.* wrong normalisation.*mean \(3.0,\)"):
        row.check_dense(row.load_model(), load_data("digits", mean=(3.0,), std=(0.2,)))


def test_random_weights_stop():
    row = experiment("digits-resnet20")
    with pytest.raises(SnowsError, match="other weights"):
        row.check_dense(row.load_model(pretrained=False), row.load_data())


def test_a_part_of_the_images_may_differ_by_three_standard_errors():
    row = experiment("digits-resnet20")
    bundle, model = row.load_data(), row.load_model()
    metrics = row.check_dense(model, bundle, images=100)
    assert metrics.images == 100
    assert row.check_dense(model, bundle, images=100).accuracy == metrics.accuracy
    p = metrics.accuracy / 100
    far = min(0.99, p - 0.2)
    wide = 300 * math.sqrt(far * (1 - far) / 100)
    assert wide < 20
    other = dataclasses.replace(row, records=(dataclasses.replace(row.records[0], accuracy=100 * far),))
    with pytest.raises(SnowsError, match=r"within 1[0-9]"):
        other.check_dense(model, bundle, images=100)


def test_an_unrecorded_data_set_is_only_measured(tmp_path, make_images):
    for name in range(10):
        make_images(tmp_path / str(name), 2, size=16, mode="L")
    row = experiment("digits-resnet20")
    bundle = row.load_data(data=f"folder:{tmp_path}")
    assert bundle.mean == row.load_data().mean
    assert row.check_dense(row.load_model(), bundle).images == len(bundle.test)


def test_images_without_labels_cannot_be_checked(tmp_path, make_images):
    make_images(tmp_path, 4, size=16, mode="L")
    row = experiment("digits-resnet20")
    for images in (None, 2):
        with pytest.raises(SnowsError, match="no labels"):
            row.check_dense(row.load_model(), row.load_data(data=f"folder:{tmp_path}"), images)


def test_grey_and_colour_are_not_mixed():
    with pytest.raises(SnowsError, match=r"data: got 'digits' \(grey images\); expected images with 3 channels"):
        experiment("resnet20").load_data(data="digits")
    with pytest.raises(SnowsError, match=r"'cifar10' \(colour images\); expected images with 1 channel "):
        experiment("digits-resnet20").load_data(data="cifar10")
    for name in ("digits-resnet20", "resnet20"):
        with pytest.raises(SnowsError, match=r"data: got 'mnist'; expected one of digits, cifar10"):
            experiment(name).load_data(data="mnist")
    row = experiment("resnet20")
    with pytest.raises(SnowsError, match=r"grey \(1 channel\) images from 'digits'; expected colour"):
        row.check_dense(row.load_model(pretrained=False), load_data("digits"))


def _noise(count, shape, classes):
    images = ArrayImages(torch.rand(count, *shape), torch.arange(count) % classes, (0.5,) * shape[0], (0.5,) * shape[0])
    names = [str(c) for c in range(classes)]
    return DataBundle("noise", Split(images), Split(images), names, shape, (0.5,), (0.5,), "noise")


def test_wrong_image_size_is_refused():
    row = experiment("resnet20")
    with pytest.raises(SnowsError, match=r"image_size: got images \(3, 16, 16\).*expected \(3, 32, 32\)"):
        row.check_dense(row.load_model(pretrained=False), _noise(4, (3, 16, 16), 10))


def test_labels_of_another_task_are_refused():
    row = experiment("resnet20")
    with pytest.raises(SnowsError, match="got 4 classes from 'noise'; expected 10, the outputs"):
        row.check_dense(row.load_model(pretrained=False), _noise(4, (3, 32, 32), 4))


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2"])
def test_imagenet_experiments_run_from_local_files(name, tmp_path, make_images, no_network, monkeypatch):
    """Random weights in a file and a few JPEGs stand for the real ones."""
    monkeypatch.undo()  # torchvision's builder is needed; nothing below downloads
    for part in ("train", "val"):
        for wnid in ("n01440764", "n03888257"):
            make_images(tmp_path / "imagenet" / part / wnid, 1, size=64, suffix=".JPEG")
    row = experiment(name)
    torch.manual_seed(0)
    save_file(row.load_model(pretrained=False).state_dict(), tmp_path / "w.safetensors")
    model = row.load_model(weights=tmp_path / "w.safetensors")
    bundle = row.load_data(tmp_path, data="imagenet", download=False)
    assert bundle.image_shape == (3, 224, 224) == row.image_shape
    assert bundle.mean == row.load_data(tmp_path, data=f"folder:{tmp_path / 'imagenet'}").mean
    images, labels = bundle.test.tensors()
    assert labels.tolist() == [0, 701]
    with torch.no_grad():
        assert model(images).shape == (2, 1000)
    unrecorded = dataclasses.replace(row, records=())
    assert unrecorded.check_dense(model, bundle).images == 2


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_preprocessing_is_the_librarys_own(name):
    expected = sources.preprocessing(EXPERIMENTS[name].model)
    from PIL import Image

    image = expected.transform(Image.new("RGB", (300, 260), (128, 128, 128)))
    assert tuple(image.shape) == expected.image_shape == (3, 224, 224)
    middle = [(128 / 255 - m) / s for m, s in zip(expected.mean, expected.std, strict=True)]
    assert torch.allclose(image.mean((1, 2)), torch.tensor(middle), atol=0.02)


HAS_CIFAR = (Path(os.environ.get("SNOWS_DATA") or "/nonexistent") / "cifar10" / "test").is_dir()
HAS_RESNET20 = (Path(torch.hub.get_dir()) / "checkpoints" / "resnet20_cifar10-e08b9b71.pth.tar").is_file()


@pytest.mark.skipif(not (HAS_CIFAR and HAS_RESNET20), reason="SNOWS_DATA and TORCH_HOME have no CIFAR-10 and ResNet-20")
def test_published_resnet20_scores_what_is_recorded():
    row = experiment("resnet20")
    model, bundle = row.load_model(), row.load_data()
    assert row.check_dense(model, bundle).accuracy == pytest.approx(90.86, abs=0.3)
    usual = load_data("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    with pytest.raises(SnowsError, match=r"scores 5\d\..*expected 90.86.*wrong normalisation"):
        row.check_dense(model, usual)
