"""Digits and CIFAR: trees, archives, checksums, and every way in which they can be missing."""

import inspect
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from snows_core.errors import SnowsError
from snows_core.zoo import cifar, fetch
from snows_core.zoo.data import DATASETS, LOADERS, load_data


def test_digits_are_a_fixed_disjoint_normalised_split():
    bundle = load_data("digits")
    assert (len(bundle.train), len(bundle.test)) == (1200, 597)
    assert bundle.image_shape == (1, 16, 16) and bundle.labelled
    assert not set(bundle.train.indices.tolist()) & set(bundle.test.indices.tolist())
    images, labels = bundle.train.tensors()
    assert images.shape == (1200, 1, 16, 16) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert abs(float(images.mean())) < 0.01 and abs(float(images.std()) - 1) < 0.01
    assert labels.bincount(minlength=10).min() > 100
    assert bundle.test.indices[:3].tolist() == [1133, 869, 604], "the split may never change: accuracies hang on it"


def test_digits_refuse_another_size_or_colour():
    with pytest.raises(SnowsError, match="image_size: got 32; expected 16"):
        load_data("digits", image_size=32)
    with pytest.raises(SnowsError, match="mean: got 3 values; expected one value"):
        load_data("digits", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with pytest.raises(SnowsError, match="mean, std"):
        load_data("digits", mean=(0.5,), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "near"),
    [("cifar11", "cifar10"), ("CIFAR-10", "cifar10"), ("digit", "digits"), ("ImageNet-1k", "imagenet")],
)
def test_unknown_data_lists_the_nearest_name(name, near):
    with pytest.raises(SnowsError, match=rf"data: got '{name}'; expected one of digits, .*\. Nearest: {near}\.$"):
        load_data(name)


@pytest.mark.parametrize("name", ["mnist", "svhn", "tiny", "coco", ""])
def test_data_that_is_near_to_none_lists_all_and_how_to_use_a_folder(name):
    with pytest.raises(
        SnowsError, match=rf"data: got '{name}'; .*digits, cifar10, .*folder:<path>\. Images of your own"
    ):
        load_data(name)


def test_a_bare_path_is_led_to_the_form_of_a_folder(tmp_path):
    with pytest.raises(SnowsError, match=rf"A folder of images is named folder:{tmp_path}\.$"):
        load_data(str(tmp_path))
    for empty in ("folder:", "folder: "):
        with pytest.raises(SnowsError, match=r"which is not a folder; .*Check the path"):
            load_data(empty)


def test_missing_root_is_refused_before_anything_is_downloaded(tmp_path, monkeypatch):
    with pytest.raises(SnowsError, match=r"root: got .*not a folder"):
        load_data("cifar10", tmp_path / "nowhere")
    monkeypatch.setenv("SNOWS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(SnowsError, match="SNOWS_DATA: got"):
        load_data("cifar10")


def test_root_is_argument_then_variable_then_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNOWS_DATA", str(tmp_path))
    assert fetch.data_root() == tmp_path
    other = tmp_path / "other"
    other.mkdir()
    assert fetch.data_root(other) == other
    monkeypatch.delenv("SNOWS_DATA")
    assert "snows" in str(fetch.data_root())


@pytest.fixture
def cifar_tree(tmp_path, make_images):
    for part, count in (("train", 2), ("test", 1)):
        for name in cifar.CIFAR10_CLASSES:
            make_images(tmp_path / "cifar10" / part / name, count)
    return tmp_path


def test_tree_gives_cifar_labels_and_default_normalisation(cifar_tree):
    bundle = load_data("cifar10", cifar_tree)
    assert (len(bundle.train), len(bundle.test)) == (20, 10)
    assert bundle.classes == cifar.CIFAR10_CLASSES and bundle.mean == (0.5, 0.5, 0.5)
    images, labels = bundle.test.tensors()
    assert labels.tolist() == list(range(10))
    assert images.shape == (10, 3, 32, 32)
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = (torch.tensor(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.allclose(images[0], expected)


def test_tree_can_be_resized_and_normalised_otherwise(cifar_tree):
    bundle = load_data("cifar10", cifar_tree, image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    images, _ = bundle.test.tensors()
    assert images.shape == (10, 3, 16, 16) and 0 <= float(images.min()) and float(images.max()) <= 1


def test_tree_without_one_class_is_refused(cifar_tree):
    shutil.rmtree(cifar_tree / "cifar10" / "test" / "cat")
    with pytest.raises(SnowsError, match=r"9 class folders.*cat missing or unknown.*the 10 classes"):
        load_data("cifar10", cifar_tree)


def test_half_a_tree_is_refused(cifar_tree):
    shutil.rmtree(cifar_tree / "cifar10" / "test")
    with pytest.raises(SnowsError, match=r"no folder .*test"):
        load_data("cifar10", cifar_tree)


def test_wrong_size_names_the_file(cifar_tree, make_images):
    make_images(cifar_tree / "cifar10" / "test" / "dog", 1, size=40)
    with pytest.raises(SnowsError, match=r"image_size: got \(3, 40, 40\) from .*dog.000.png"):
        load_data("cifar10", cifar_tree).test.tensors()


def test_damaged_image_names_the_file(cifar_tree):
    (cifar_tree / "cifar10" / "test" / "ship" / "000.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=r"an image was left out: .*ship.000.png cannot be read"):
        load_data("cifar10", cifar_tree).test.tensors()


def test_grey_tree_is_refused(tmp_path, make_images):
    for part in ("train", "test"):
        for name in cifar.CIFAR10_CLASSES:
            make_images(tmp_path / "cifar10" / part / name, 1, mode="L")
    with pytest.raises(SnowsError, match=r"got grey images.*expected colour"):
        load_data("cifar10", tmp_path)


def test_grey_normalisation_for_colour_images_is_refused(cifar_tree):
    with pytest.raises(SnowsError, match="three values"):
        load_data("cifar10", cifar_tree, mean=(0.5,), std=(0.5,))


@pytest.fixture
def archive(make_cifar_archive):
    """Make a tiny CIFAR-10 archive of 20 training and 4 test images; return its path."""
    pixels = np.random.RandomState(0).randint(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 9] * 6)
    return make_cifar_archive((pixels[:20], labels[:20]), (pixels[20:], labels[20:]))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def _delivers(content, asked):
    def download(url, folder, filename):
        asked.append(url)
        if isinstance(content, Exception):
            raise content
        (Path(folder) / filename).write_bytes(content)

    return download


def _nothing_half_written(folder):
    return not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_archive_comes_from_the_mirror_and_is_kept(root, archive, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "download_url", _delivers(archive.read_bytes(), asked))
    bundle = load_data("cifar10-full", root)
    assert (len(bundle.train), len(bundle.test)) == (20, 4)
    assert bundle.test.tensors()[0].shape == (4, 3, 32, 32)
    assert bundle.test.tensors()[1].tolist() == [0, 1, 2, 9]
    assert len(asked) == 1 and "zenodo" in asked[0]
    load_data("cifar10-full", root, download=False)  # what is there is used
    assert len(asked) == 1 and _nothing_half_written(root)


def test_archive_falls_back_to_the_home_host(root, archive, monkeypatch):
    asked = []
    good, bad = _delivers(archive.read_bytes(), asked), _delivers(b"a page that says: throttled", asked)
    monkeypatch.setattr(fetch, "download_url", lambda url, *rest: (bad if "zenodo" in url else good)(url, *rest))
    assert len(load_data("cifar10-full", root).test) == 4
    assert len(asked) == 2 and "toronto" in asked[1]


def test_wrong_bytes_everywhere_are_a_checksum_mismatch(root, archive, monkeypatch):
    monkeypatch.setattr(fetch, "download_url", _delivers(b"wrong", []))
    with pytest.raises(SnowsError, match=r"tried .*checksum mismatch.*place the file \(md5 .* at .*cifar10"):
        load_data("cifar10-full", root)
    assert list(root.iterdir()) == []


def test_no_network_is_one_sentence(root, no_network):
    with pytest.raises(SnowsError, match=r"could not be downloaded; tried .*zenodo.*toronto.*place the file") as caught:
        load_data("cifar10", root)
    assert "\n" not in str(caught.value)
    assert "c58f30108f718f92721af3b95e74349a" in str(caught.value)
    assert list(root.iterdir()) == []


def test_download_can_be_forbidden(root):
    with pytest.raises(SnowsError, match="download=False"):
        load_data("cifar10-full", root, download=False)


def test_interrupted_download_leaves_nothing(root, archive, monkeypatch):
    def interrupted(url, folder, filename):
        (Path(folder) / filename).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_data("cifar10-full", root)
    assert [path for path in root.rglob("*") if path.is_file()] == [] and _nothing_half_written(root)


def test_placed_archive_is_used_and_verified(root, archive, no_network):
    folder = root / "cifar10"
    folder.mkdir()
    shutil.copy(archive, folder)
    assert len(load_data("cifar10-full", root).train) == 20
    shutil.rmtree(folder / "cifar-10-batches-py")
    (folder / archive.name).write_bytes(b"damaged")
    with pytest.raises(SnowsError, match=r"checksum does not match.*Delete it"):
        load_data("cifar10-full", root)


def test_damaged_batches_are_noticed(root, archive, no_network):
    folder = root / "cifar10"
    folder.mkdir()
    shutil.copy(archive, folder)
    load_data("cifar10-full", root)
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    with pytest.raises(SnowsError, match=r"damaged \(checksum mismatch\)"):
        load_data("cifar10-full", root)


def test_timeout_is_set_only_during_a_download():
    before = fetch.socket.getdefaulttimeout()
    with fetch.impatient(7):
        assert fetch.socket.getdefaulttimeout() == 7
    assert fetch.socket.getdefaulttimeout() == before


LOCAL = Path(os.environ.get("SNOWS_DATA") or "/nonexistent") / "cifar10" / "test"


@pytest.mark.skipif(not LOCAL.is_dir(), reason="SNOWS_DATA has no cifar10 image-folder tree")
def test_local_cifar_tree():
    bundle = load_data("cifar10")
    images, labels = bundle.test.tensors(40)
    assert images.shape == (40, 3, 32, 32) and labels.unique().tolist() == [0]


def test_all_loaders_are_called_alike():
    names = {tuple(inspect.signature(loader).parameters) for loader in LOADERS.values()}
    assert names == {("name", "root", "wanted", "download")} and tuple(LOADERS) == DATASETS
