"""CIFAR-10 cut to the images that results stand on, and all of it, from archives made on the spot."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import cifar_subset as tool
import numpy as np
import pytest
import torch
from PIL import Image

from snows_core.errors import SnowsError
from snows_core.zoo import cifar, cifar_subset, experiment, load_data
from snows_core.zoo.bundle import ArrayImages, DataBundle, Split

COUNTS = {"train": 3, "test": 2}  # images a class in the tree
OTHERS = {"train": 25, "test": 12}  # further images of the archive


def _random(count, seed):
    return np.random.RandomState(seed).randint(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Make a tree whose images were written in another order than that of their names."""
    root = tmp_path / "tree"
    for part, count in COUNTS.items():
        pixels = iter(_random(10 * count, seed=count))
        for name in reversed(cifar.CIFAR10_CLASSES):
            folder = root / "cifar10" / part / name
            folder.mkdir(parents=True)
            for number in reversed(range(count)):
                Image.fromarray(next(pixels)).save(folder / f"{7 * number:05d}.png")
    return root


@pytest.fixture
def listed(tree, tmp_path, monkeypatch):
    """Put the tree's list in the place of the real one; return a function that does so again, after a change."""

    def write():
        cifar_subset.write_list(tool.listed(tree), tmp_path / "list")
        monkeypatch.setattr(cifar_subset, "FILE", tmp_path / "list")

    write()
    return write


@pytest.fixture
def archived(tree, tmp_path, make_cifar_archive):
    """Return a function that makes an archive of the tree's images and others, in an order of its own, and unpacks it.

    ``archived(change)`` lets ``change(part, pixels, labels)`` return other images first; it returns the folder of data
    and what the archive holds, a part each.
    """

    def make(change=lambda part, pixels, labels: (pixels, labels)):
        held = {}
        for seed, part in enumerate(COUNTS):
            files = sorted((tree / "cifar10" / part).rglob("*.png"))
            pixels = np.stack([np.asarray(Image.open(file)) for file in files] + list(_random(OTHERS[part], 90 + seed)))
            names = [file.parent.name for file in files]
            labels = np.array([cifar.CIFAR10_CLASSES.index(name) for name in names] + [4] * OTHERS[part])
            order = np.random.RandomState(seed).permutation(len(pixels))
            held[part] = change(part, pixels[order], labels[order])
        root = tmp_path / "root"
        (root / "cifar10").mkdir(parents=True)
        shutil.copy(make_cifar_archive(held["train"], held["test"]), root / "cifar10")
        return root, held

    return make


def _same(first, second):
    for a, b in zip((first.train, first.test), (second.train, second.test), strict=True):
        for values, others in zip(a.tensors(), b.tensors(), strict=True):
            assert torch.equal(values, others)
        assert all(torch.equal(x, y) for x, y in zip(a.sample(7, seed=3), b.sample(7, seed=3), strict=True))
        batches = zip(a.loader(8), b.loader(8), strict=True)
        assert all(torch.equal(x, y) for one, other in batches for x, y in zip(one, other, strict=True))
    assert first.classes == second.classes and (first.mean, first.std) == (second.mean, second.std)


@pytest.mark.parametrize("size", [None, 24])
def test_the_archive_is_cut_to_the_images_of_the_tree_in_its_order(tree, listed, archived, no_network, size):
    root, _ = archived()
    cut = load_data("cifar10", root, image_size=size)
    assert (len(cut.train), len(cut.test)) == (30, 20)
    _same(cut, load_data("cifar10", tree, image_size=size))
    assert cut.test.tensors()[1].tolist() == [label for label in range(10) for _ in range(2)]
    assert "md5 verified, cut to the 30 training and 20 test images that cifar10_subset" in cut.source


def test_of_equal_pixels_the_label_decides_and_then_the_order_of_the_archive(tree, listed, archived, no_network):
    for part in COUNTS:  # two listed images of one class with the same pixels
        folder = tree / "cifar10" / part / "cat"
        shutil.copy(folder / "00000.png", folder / "00007.png")
    listed()

    def mislead(part, pixels, labels):  # the same pixels under other labels, before all others
        return np.concatenate([pixels, pixels]), np.concatenate([(labels + 1) % 10, labels])

    root, held = archived(mislead)
    cut = load_data("cifar10", root)
    _same(cut, load_data("cifar10", tree))
    half = [len(held[part][0]) // 2 for part in COUNTS]
    assert int(cut.train.indices.min()) >= half[0] and int(cut.test.indices.min()) >= half[1]
    assert len(set(cut.train.indices.tolist())) == 30 and len(set(cut.test.indices.tolist())) == 20
    first, second = cut.test.indices[6:8].tolist()
    assert first < second  # the cats


@pytest.mark.parametrize("how", ["gone", "pixel", "label"])
def test_images_that_the_archive_lacks_are_one_error_that_counts_them(listed, archived, no_network, how):
    keys = {part: cifar_subset.read_list()[part][:count] for part, count in (("train", 4), ("test", 1))}

    def spoil(part, pixels, labels):
        hit = np.array([cifar_subset.pixel_digest(image) in dict(keys[part]) for image in pixels])
        assert hit.sum() == len(keys[part])
        pixels, labels = pixels.copy(), labels.copy()
        if how == "gone":
            return pixels[~hit], labels[~hit]
        if how == "pixel":
            pixels[hit, 31, 31, 2] ^= 1
        else:
            labels[hit] = 5
        return pixels, labels

    root, _ = archived(spoil)
    message = r"^root: got an archive .* without 4 of the 30 training images and 1 of the 20 test images .*cifar10-full"
    with pytest.raises(SnowsError, match=message) as caught:
        load_data("cifar10", root)
    assert "\n" not in str(caught.value)
    assert len(load_data("cifar10-full", root).train) > 30


def test_a_training_image_among_the_test_images_does_not_count(listed, archived, no_network):
    moved = {}

    def move(part, pixels, labels):
        if part == "train":
            place = int(np.flatnonzero(labels == 0)[0])
            moved["pixels"], moved["labels"] = pixels[place : place + 1], labels[place : place + 1]
            return np.delete(pixels, place, 0), np.delete(labels, place)
        return np.concatenate([pixels, moved["pixels"]]), np.concatenate([labels, moved["labels"]])

    root, _ = archived(move)
    with pytest.raises(SnowsError, match="without 1 of the 30 training images and 0 of the 20 test"):
        load_data("cifar10", root)


def test_the_full_set_is_the_whole_archive_whatever_smaller_tree_is_there(tree, archived, no_network):
    root, held = archived()
    for part in COUNTS:
        shutil.copytree(tree / "cifar10" / part, root / "cifar10" / part)
    full = load_data("cifar10-full", root)
    for part, split in zip(COUNTS, (full.train, full.test), strict=True):
        images, labels = split.tensors()
        pixels = torch.from_numpy(held[part][0]).permute(0, 3, 1, 2)
        assert torch.allclose(images, (pixels / 255 - 0.5) / 0.5) and labels.tolist() == held[part][1].tolist()
    assert full.name == "cifar10-full" and full.source.endswith("md5 verified")
    assert len(load_data("cifar10", root).test) == 20  # the tree


def test_a_complete_tree_is_the_full_set_and_is_not_cut(tree, monkeypatch, no_network):
    monkeypatch.setattr(cifar, "COMPLETE", (30, 20))
    for name in ("cifar10", "cifar10-full"):  # none of its images is in the package's list
        bundle = load_data(name, tree, download=False)
        assert (bundle.name, len(bundle.train), len(bundle.test)) == (name, 30, 20)
        assert bundle.source == "image-folder tree with 30 training and 20 test images"
    (tree / "cifar10" / "test" / "cat" / "00000.png").unlink()
    with pytest.raises(SnowsError, match="download=False"):
        load_data("cifar10-full", tree, download=False)


def test_the_shipped_list_is_sorted_by_class_and_without_repetition():
    listed = cifar_subset.read_list()
    assert {part: len(images) for part, images in listed.items()} == {"train": 5_085, "test": 1_017}
    for images in listed.values():
        labels = [label for _, label in images]
        assert labels == sorted(labels) and set(labels) == set(range(10))
    digests = [digest for images in listed.values() for digest, _ in images]
    assert len(set(digests)) == 6_102 and {len(digest) for digest in digests} == {8}
    assert cifar_subset.FILE.stat().st_size < 100_000


def test_the_format_is_the_documented_one(tree, tmp_path):
    listed = tool.listed(tree)
    with Image.open(tree / "cifar10" / "train" / "airplane" / "00014.png") as image:
        assert listed["train"][2] == (hashlib.sha256(image.tobytes()).digest()[:8], 0)
    for name in ("one", "two"):
        cifar_subset.write_list(listed, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert cifar_subset.read_list(tmp_path / "one") == listed


def test_the_tool_writes_the_list_and_tells_another_tree(tree, tmp_path, monkeypatch, capsys):
    for module in (tool, cifar_subset):
        monkeypatch.setattr(module, "FILE", tmp_path / "list")
    monkeypatch.setattr(sys, "argv", ["cifar_subset.py", str(tree)])
    assert tool.main() == 0
    assert capsys.readouterr().out == "30 training and 20 test images, 0 with pixels of another\n"
    monkeypatch.setattr(sys, "argv", ["cifar_subset.py", str(tree), "--check"])
    assert tool.main() == 0
    (tree / "cifar10" / "test" / "cat" / "00000.png").unlink()
    assert tool.main() == 1 and "not that of this tree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "images", "accuracy"),
    [
        ("cifar10", 1_017, 90.86),
        ("cifar10-full", 10_000, 91.96),
        ("cifar10", 10_000, 91.96),  # a complete tree
        ("cifar10", 3_000, 91.96),  # a tree of one's own
        ("folder:x", 1_017, None),
    ],
)
def test_each_data_set_has_its_own_dense_accuracy(data, images, accuracy):
    split = Split(ArrayImages(torch.zeros(images, 3, 1, 1), torch.zeros(images), (0.5,) * 3, (0.5,) * 3))
    record = experiment("resnet20").record_for(DataBundle(data, split, split, [], (3, 1, 1), (0.5,), (0.5,), "made"))
    assert (record and record.accuracy) == accuracy


LOCAL = Path(os.environ.get("SNOWS_DATA") or "/nonexistent")


@pytest.mark.skipif(not (LOCAL / "cifar10" / "test").is_dir(), reason="SNOWS_DATA has no cifar10 image-folder tree")
def test_the_shipped_list_is_that_of_the_local_tree():
    assert tool.listed(LOCAL) == cifar_subset.read_list()
