"""ImageNet, Imagenette and folders of the user's own, with files made on the spot."""

import shutil
import tarfile

import pytest
import torch

from snows_core.errors import SnowsError
from snows_core.zoo import fetch, imagenet
from snows_core.zoo.data import load_data
from snows_core.zoo.folder import imagenet_labels

WNIDS = ("n01440764", "n02102040", "n03888257")  # tench, springer spaniel, parachute
INDICES = [0, 217, 701]


@pytest.fixture
def tree(tmp_path, make_images):
    for part, count in (("train", 2), ("val", 1)):
        for wnid in WNIDS:
            make_images(tmp_path / "imagenet" / part / wnid, count, size=40, suffix=".JPEG")
    return tmp_path


def test_all_thousand_ids_are_in_alphabetical_order():
    labels = imagenet_labels()
    assert len(labels) == 1000 and list(labels) == sorted(labels)


def test_part_of_imagenet_keeps_the_thousand_labels(tree):
    bundle = load_data("imagenet", tree, image_size=32)
    assert (len(bundle.train), len(bundle.test), len(bundle.classes)) == (6, 3, 1000)
    images, labels = bundle.test.tensors()
    assert labels.tolist() == INDICES
    assert images.shape == (3, 3, 32, 32)
    assert "tench" in bundle.classes[0]


def test_a_transform_of_the_network_is_used(tree):
    bundle = load_data("imagenet", tree, image_size=8, transform=lambda image: torch.full((3, 8, 8), 7.0))
    assert bundle.test.tensors()[0].unique().tolist() == [7]


def test_transform_of_another_size_is_refused(tree):
    bundle = load_data("imagenet", tree, image_size=16, transform=lambda image: torch.zeros(3, 8, 8))
    with pytest.raises(SnowsError, match=r"image_size: got \(3, 8, 8\)"):
        bundle.test.tensors()


def test_missing_imagenet_says_where_to_put_it(tmp_path):
    with pytest.raises(SnowsError, match=r"train,val.*one of the two.*registration.*imagenette"):
        load_data("imagenet", tmp_path)


def test_folders_that_are_no_wordnet_ids_are_refused(tree, make_images):
    make_images(tree / "imagenet" / "val" / "dogs", 1)
    with pytest.raises(SnowsError, match=r"class folder 'dogs'.*folder:<path>"):
        load_data("imagenet", tree)


def test_grey_images_are_refused_but_a_few_among_colour_are_not(tmp_path, make_images):
    for part in ("train", "val"):
        make_images(tmp_path / "imagenet" / part / WNIDS[0], 2, mode="L")
    with pytest.raises(SnowsError, match="got grey images"):
        load_data("imagenet", tmp_path)
    for part in ("train", "val"):
        make_images(tmp_path / "imagenet" / part / WNIDS[1], 2)
    assert load_data("imagenet", tmp_path, image_size=32).test.tensors()[0].shape == (4, 3, 32, 32)


def test_imagenette_archive_is_downloaded_once(tmp_path, make_images, monkeypatch):
    made = tmp_path / "made" / "imagenette2-320"
    for part in ("train", "val"):
        make_images(made / part / WNIDS[1], 1, suffix=".JPEG")
    archive = tmp_path / "made" / "imagenette2-320.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made, made.name)
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(fetch, "download_url", lambda url, folder, name: shutil.copy(archive, f"{folder}/{name}"))
    with pytest.raises(SnowsError, match="checksum mismatch"):
        load_data("imagenette", root)
    monkeypatch.setattr(fetch, "digest", lambda file, method: imagenet.IMAGENETTE_MD5)
    bundle = load_data("imagenette", root, image_size=32)
    assert bundle.test.tensors()[1].tolist() == [217] and len(bundle.classes) == 1000
    assert load_data("imagenette", root, download=False).name == "imagenette"


def test_imagenette_checksum_is_torchvisions():
    import inspect

    from torchvision import datasets

    source = inspect.getsource(datasets.Imagenette)
    assert imagenet.IMAGENETTE_MD5 in source and imagenet.IMAGENETTE_URL in source


def test_own_classes_are_numbered_and_every_fifth_image_is_held_out(tmp_path, make_images):
    make_images(tmp_path / "a", 5)
    make_images(tmp_path / "b", 5)
    bundle = load_data(f"folder:{tmp_path}", image_size=32)
    assert bundle.classes == ["a", "b"] and bundle.labelled
    assert (len(bundle.train), len(bundle.test)) == (8, 2)
    assert bundle.test.tensors()[1].tolist() == [0, 1]


def test_divided_folder_is_used_as_divided(tmp_path, make_images):
    make_images(tmp_path / "train" / "a", 3)
    make_images(tmp_path / "val" / "b", 2)
    bundle = load_data(f"folder:{tmp_path}", image_size=32)
    assert (len(bundle.train), len(bundle.test), bundle.classes) == (3, 2, ["a", "b"])
    assert bundle.test.tensors()[1].tolist() == [1, 1]


def test_own_folder_with_wordnet_ids_has_imagenet_labels(tmp_path, make_images):
    for wnid in WNIDS:
        make_images(tmp_path / wnid, 2)
    bundle = load_data(f"folder:{tmp_path}", image_size=32)
    assert len(bundle.classes) == 1000
    assert set(bundle.train.tensors()[1].tolist()) <= set(INDICES)


def test_flat_folder_has_no_labels(tmp_path, make_images):
    make_images(tmp_path, 6)
    bundle = load_data(f"folder:{tmp_path}", image_size=32)
    images, labels, _ = bundle.train.sample(4, seed=0)
    assert images.shape == (4, 3, 32, 32) and labels is None and not bundle.labelled
    with pytest.raises(SnowsError, match="has no labels"):
        bundle.test_tensors()


def test_grey_folder_for_a_grey_network(tmp_path, make_images):
    make_images(tmp_path / "a", 3, size=16, mode="L")
    bundle = load_data(f"folder:{tmp_path}", mean=(0.5,), std=(0.5,), image_size=16)
    assert bundle.train.tensors()[0].shape == (2, 1, 16, 16)


def test_empty_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(SnowsError, match=r"0 images.*at least 2"):
        load_data(f"folder:{tmp_path}")
    with pytest.raises(SnowsError, match="not a folder"):
        load_data(f"folder:{tmp_path}/nowhere")
    with pytest.raises(SnowsError, match="std"):
        load_data(f"folder:{tmp_path}", mean=(0.5,), std=(0,))


HIDDEN = (".thumbnails", "__MACOSX", "@eaDir", ".ipynb_checkpoints", "#recycle")


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path, make_images, hidden):
    for part, count in (("train", 3), ("val", 2)):
        for name in ("cats", "dogs"):
            make_images(tmp_path / part / name, count)
            make_images(tmp_path / part / name / hidden, 4)
            make_images(tmp_path / part / name / "deeper" / hidden / "and deeper", 4)
            shutil.copy(tmp_path / part / name / "000.png", tmp_path / part / name / "._000.png")
        make_images(tmp_path / part / hidden, 5)
        make_images(tmp_path / part / hidden / "cats", 5)
    bundle = load_data(f"folder:{tmp_path}", image_size=32)
    assert (len(bundle.train), len(bundle.test), bundle.classes) == (6, 4, ["cats", "dogs"])
    bundle = load_data(f"folder:{tmp_path / 'train'}", image_size=32)
    assert (len(bundle.train) + len(bundle.test), bundle.classes) == (6, ["cats", "dogs"])


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_flat_folder_stays_flat_beside_a_hidden_one(tmp_path, make_images, hidden):
    make_images(tmp_path, 5)
    make_images(tmp_path / hidden, 7)
    bundle = load_data(f"folder:{tmp_path}", image_size=32)
    assert len(bundle.train) + len(bundle.test) == 5 and not bundle.labelled


def test_a_folder_below_a_hidden_one_is_used(tmp_path, make_images):
    make_images(tmp_path / ".cache" / "pictures", 4)
    assert len(load_data(f"folder:{tmp_path / '.cache' / 'pictures'}", image_size=32).train) == 3


def test_imagenet_leaves_hidden_folders_out(tree, make_images):
    for hidden in HIDDEN:
        make_images(tree / "imagenet" / "val" / hidden, 2)
        make_images(tree / "imagenet" / "val" / WNIDS[0] / hidden, 2)
    assert len(load_data("imagenet", tree, image_size=32).test) == 3
