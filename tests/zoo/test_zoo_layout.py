"""ImageNet as it comes, half of it alone, and how often folders are walked."""

import os
import shutil
import time

import pytest
import torch

from snows_core.book.profiles import Needs, check_needs, load_profile
from snows_core.book.reproduce import notebooks_folder
from snows_core.errors import SnowsError
from snows_core.zoo import experiment, load_data
from snows_core.zoo.data import load_prepared
from snows_core.zoo.preparation import Preparation
from snows_core.zoo.tree import index_tree

WNIDS = ("n01440764", "n02102040", "n03888257")  # tench, springer spaniel, parachute
LABEL = dict(zip(WNIDS, (0, 217, 701), strict=True))
ORDER = [WNIDS[i] for i in (2, 0, 0, 1, 2, 1, 0, 2, 1, 1)]  # class of each validation image


@pytest.fixture
def flat(tmp_path, make_images):
    """Return the root of an ImageNet whose val/ is as it comes."""
    make_images(tmp_path / "made", len(ORDER), suffix=".JPEG")
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    for i, file in enumerate(sorted((tmp_path / "made").iterdir()), 1):
        file.rename(tmp_path / "imagenet" / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
    return tmp_path


def write_map(root, kind):
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, len(ORDER) + 1)]
    if kind == "LOC_val_solution.csv":
        lines = [f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in zip(names, ORDER, strict=True)]
        (root / kind).write_text("\n".join(["ImageId,PredictionString", *lines[::-1]]) + "\n")
    else:
        lines = [f"{name}.JPEG {wnid}" for name, wnid in zip(names, ORDER, strict=True)]
        (root / kind).write_text("\n".join(lines))


def both(root):
    """Yield the check before a notebook runs, and loading."""
    yield lambda: check_needs("04_x", "imagenet", Needs(data=["imagenet"], gigabytes=0.01), str(root))
    yield lambda: load_data("imagenet", root)


def test_a_flat_val_is_refused_with_a_recipe_before_anything_runs(flat, make_images):
    for train in (False, True):
        if train:
            make_images(flat / "imagenet" / "train" / WNIDS[0], 2, suffix=".JPEG")
        for look in both(flat):
            with pytest.raises(
                SnowsError, match=r"all images in one folder .*LOC_val_solution.csv.*valprep.sh"
            ) as caught:
                look()
            assert "\n" not in str(caught.value) and str(flat / "imagenet" / "val") in str(caught.value)


@pytest.mark.parametrize("kind", ["LOC_val_solution.csv", "val_map.txt"])
@pytest.mark.parametrize("place", ["imagenet", "imagenet/val", "kaggle"])
def test_a_flat_val_is_read_by_its_map(flat, make_images, kind, place):
    for wnid in WNIDS:
        make_images(flat / "imagenet" / "train" / wnid, 1, suffix=".JPEG")
    if place == "kaggle":
        packed = flat / "imagenet" / "ILSVRC" / "Data" / "CLS-LOC"
        packed.mkdir(parents=True)
        for part in ("train", "val"):
            shutil.move(flat / "imagenet" / part, packed)
    write_map(flat / "imagenet" if place == "kaggle" else flat / place, kind)
    for look in both(flat):
        look()
    bundle = load_data("imagenet", flat, image_size=16)
    assert bundle.test.tensors()[1].tolist() == [LABEL[wnid] for wnid in ORDER]
    assert bundle.train.tensors()[1].tolist() == [0, 217, 701] and len(bundle.classes) == 1000


def test_a_map_that_is_wrong_or_short_is_refused(flat):
    path = flat / "imagenet" / "val_map.txt"
    path.write_text("ILSVRC2012_val_00000001.JPEG cat")
    for look in both(flat):
        with pytest.raises(SnowsError, match=r"line 1 of .*val_map.txt is .*expected a file's name and its WordNet id"):
            look()
    path.write_text("\n".join(f"ILSVRC2012_val_{i:08d}.JPEG {WNIDS[0]}" for i in range(1, 9)))
    with pytest.raises(SnowsError, match=r"\(ILSVRC2012_val_00000009.JPEG and 1 others\)"):
        load_data("imagenet", flat)
    path.write_bytes("Bläser.JPEG n01440764".encode("latin-1"))
    with pytest.raises(SnowsError, match=r"^root: .*val_map.txt cannot be read \(no UTF-8 text: byte 0xe4 at 2\)"):
        load_data("imagenet", flat)


def test_names_that_begin_with_the_class_need_no_map(tmp_path, make_images):
    make_images(tmp_path / "imagenet" / "train", 6, suffix=".JPEG")
    for file in (tmp_path / "imagenet" / "train").iterdir():
        file.rename(file.with_name(f"{WNIDS[int(file.stem) % 3]}_{file.name}"))
    for look in both(tmp_path):
        look()
    bundle = load_data("imagenet", tmp_path, image_size=16)
    assert {label for part in (bundle.train, bundle.test) for label in part.tensors()[1].tolist()} <= {0, 217, 701}


def files(split):
    return [split.dataset.samples[int(i)] for i in split.indices]


@pytest.mark.parametrize("name", ["imagenet", "imagenette"])
@pytest.mark.parametrize(("part", "calibrating"), [("val", 6), ("train", 24)])
def test_one_of_train_and_val_is_divided_without_overlap(tmp_path, make_images, name, part, calibrating):
    for wnid in WNIDS:
        make_images(tmp_path / name / part / wnid, 10)
    bundle, again = (load_data(name, tmp_path, image_size=16, download=False) for _ in range(2))
    train, test = files(bundle.train), files(bundle.test)
    assert len(train) == calibrating and len(train) + len(test) == len({*train, *test}) == 30
    assert (train, test) == (files(again.train), files(again.test))
    assert f"{part} alone of" in bundle.source and f"seed 0: {calibrating} images to calibrate on" in bundle.source
    assert bundle.held_out == (part == "val")
    assert all(LABEL[path.split(os.sep)[-2]] == label for path, label in train + test)
    assert len({label for _, label in train}) > 1, "a part of the permutation, not of the alphabet"


def test_training_images_are_not_compared_with_the_record_and_that_is_said(tmp_path, make_images):
    row = experiment("mobilenetv2")
    torch.manual_seed(0)
    model = row.load_model(pretrained=False)
    for wnid in WNIDS:
        make_images(tmp_path / "imagenet" / "train" / wnid, 2, size=64)
    with pytest.warns(UserWarning, match="likely trained on the images"):
        row.check_dense(model, row.load_data(tmp_path, "imagenet"))
    (tmp_path / "imagenet" / "train").rename(tmp_path / "imagenet" / "val")
    with pytest.raises(SnowsError, match=r"expected 71.88 %"):
        row.check_dense(model, row.load_data(tmp_path, "imagenet"))
    (tmp_path / "imagenet").rename(tmp_path / "imagenette")
    with pytest.warns(UserWarning, match=r"no accuracy of mobilenetv2 on imagenette is on record: .*cannot be checked"):
        row.check_dense(model, row.load_data(tmp_path))


def test_half_a_folder_is_divided_and_a_class_named_train_is_a_class(tmp_path, make_images):
    make_images(tmp_path / "pets" / "train" / "cats", 5)
    make_images(tmp_path / "pets" / "train" / "dogs", 5)
    bundle = load_data(f"folder:{tmp_path / 'pets'}", image_size=16)
    assert (len(bundle.train), len(bundle.test), bundle.classes) == (8, 2, ["cats", "dogs"])
    assert not {*files(bundle.train)} & {*files(bundle.test)} and "every fifth of them" in bundle.source
    make_images(tmp_path / "vehicles" / "train", 5)
    make_images(tmp_path / "vehicles" / "car", 5)
    assert load_data(f"folder:{tmp_path / 'vehicles'}", image_size=16).classes == ["car", "train"]


def settled(folder):
    """Set back when folders changed, as if that had been long ago."""
    for place, _, _ in os.walk(folder):
        os.utime(place, (time.time() - 100,) * 2)


@pytest.fixture
def walks(monkeypatch):
    """Return a list that grows with every folder that is listed."""
    listed, scandir = [], os.scandir

    def counted(path="."):
        listed.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(os, "listdir", lambda *path: pytest.fail("listed in another way"))
    return listed


def test_a_tree_is_walked_once(tmp_path, make_images, walks):
    for part in ("train", "val"):
        for wnid in WNIDS:
            make_images(tmp_path / "imagenet" / part / wnid, 2)
    settled(tmp_path)
    walks.clear()
    load_data("imagenet", tmp_path, image_size=16)
    classes = [place for place in walks if os.path.basename(place) in WNIDS]
    assert len(classes) == len({*classes}) == 6, "each class folder once"
    walks.clear()
    bundle = load_data("imagenet", tmp_path, image_size=16)
    assert not [place for place in walks if os.path.basename(place) in WNIDS] and len(bundle.train) == 6


@pytest.mark.parametrize("change", ["added", "removed", "new class"])
def test_a_changed_folder_is_walked_again(tmp_path, make_images, change):
    make_images(tmp_path / "a" / "deep", 2)
    make_images(tmp_path / "b", 2)
    settled(tmp_path)
    tree = index_tree(tmp_path)
    assert index_tree(tmp_path) is tree and len(tree.files()) == 4
    if change == "added":
        make_images(tmp_path / "a" / "deep", 3)
    elif change == "removed":
        (tmp_path / "b" / "000.png").unlink()
    else:
        make_images(tmp_path / "c", 1)
    assert len(index_tree(tmp_path).files()) == {"added": 5, "removed": 3, "new class": 5}[change]


def test_a_folder_that_has_just_changed_is_not_trusted(tmp_path, make_images):
    make_images(tmp_path / "a", 2)
    assert index_tree(tmp_path) is not index_tree(tmp_path)


def test_order_is_by_folders_then_names(tmp_path, make_images):
    for place in ("b", "a", "a/b", "a/b-c", "a-b"):
        make_images(tmp_path / place, 1)
    found = [os.path.relpath(file, tmp_path) for file in index_tree(tmp_path).files()]
    assert found == [os.path.join(*place.split("/")) for place in
                     ("a/000.png", "a/b/000.png", "a/b-c/000.png", "a-b/000.png", "b/000.png")]  # fmt: skip


def test_a_long_walk_shows_a_bar_unless_it_is_quiet(tmp_path, make_images, monkeypatch, capsys):
    monkeypatch.setattr("snows_core.zoo.tree.SHOWN_AFTER", 0)
    make_images(tmp_path / "a", 2)
    load_prepared(f"folder:{tmp_path}", None, Preparation(image_size=16, progress=False))
    assert "indexing" not in capsys.readouterr().err
    load_data(f"folder:{tmp_path}", image_size=16)
    assert "indexing" in capsys.readouterr().err


PROFILES = notebooks_folder() / "profiles"
WEIGHTS_GB = {"04_imagenet_resnet50": 0.1, "05_vit_l": 1.6, "07_your_own_network": 0.05}  # as the notebooks say


@pytest.mark.parametrize("stem", WEIGHTS_GB)
def test_disk_and_downloads_are_the_same_everywhere(stem):
    from snows_core.zoo.imagenet import IMAGENETTE_DISK_GB, IMAGENETTE_GB

    words = f"Imagenette {IMAGENETTE_GB:g} GB, {IMAGENETTE_DISK_GB:g} GB on disk"
    needs = load_profile(stem, "imagenet", PROFILES.parent).needs
    wanted = IMAGENETTE_DISK_GB + WEIGHTS_GB[stem]
    assert wanted <= needs.disk_gigabytes < wanted + 0.5
    text = (PROFILES.parent / f"{stem}.ipynb").read_text(encoding="utf-8")
    assert f"{WEIGHTS_GB[stem]:g} GB of weights; {words}" in text
    readme = (PROFILES.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"{IMAGENETTE_GB:g} GB to download and {IMAGENETTE_DISK_GB:g} GB on disk" in readme


@pytest.mark.parametrize("stem", WEIGHTS_GB)
def test_imagenet_profiles_ask_for_a_gpu_and_use_it(stem):
    profile = load_profile(stem, "imagenet", PROFILES.parent)
    assert profile.needs.gpu and profile.parameters["device"] == "cuda"
