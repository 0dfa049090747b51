"""A thousand ImageNet images, and networks whose ImageNet weights lie in packages; with files made on the spot."""

import tarfile

import pytest
import torch

from snows_core.errors import SnowsError
from snows_core.zoo import EXPERIMENTS, experiment, fetch, imagenet_samples, load_data, packaged, sources
from snows_core.zoo.folder import imagenet_labels

NAMES = [
    "n01440764_tench",
    "n01443537_goldfish",
    "n01484850_great_white_shark",
    "n02102040_springer",
    "n03888257_chute",
]
ORDER = torch.randperm(5, generator=torch.Generator().manual_seed(0)).tolist()
PACKAGE = packaged.PACKAGES["efficientnet_lite0"]


@pytest.fixture
def folder(tmp_path, make_images, monkeypatch):
    """Five images under the names of the real ones, and their checksum in the place of the real one."""
    place = tmp_path / "root" / "imagenet-samples"
    make_images(place, len(NAMES), size=40, suffix=".JPEG")
    for old, new in zip(sorted(place.iterdir()), NAMES, strict=True):
        old.rename(place / f"{new}.JPEG")
    monkeypatch.setattr(imagenet_samples, "SHA256", imagenet_samples.fingerprint(place))
    return place


def test_halves_are_those_of_a_seeded_permutation_and_labels_are_imagenets(folder):
    bundle = load_data("imagenet-samples", folder.parent, image_size=32)
    (train, first), (test, second) = bundle.train.tensors(), bundle.test.tensors()
    labels = [imagenet_labels()[name.split("_")[0]] for name in NAMES]
    assert [labels.index(label) for label in (*first.tolist(), *second.tolist())] == ORDER
    assert (train.shape, test.shape, len(bundle.classes)) == ((2, 3, 32, 32), (3, 3, 32, 32), 1000)
    assert (bundle.mean, bundle.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("change", ["content", "name", "missing"])
def test_other_images_than_these_are_refused(folder, change):
    file = folder / f"{NAMES[1]}.JPEG"
    if change == "content":
        file.write_bytes(file.read_bytes() + b" ")
    elif change == "name":
        file.rename(folder / "n01443537_carp.JPEG")
    else:
        file.unlink()
    with pytest.raises(SnowsError, match=r"root: .*holds [45] images with the checksum .*expected the 1,000 of"):
        load_data("imagenet-samples", folder.parent)


def packed(folder, monkeypatch, asked):
    """Let downloads write the folder's images as the archive of the commit, beside a readme; empty the folder."""
    made = folder.parent.parent / "made" / imagenet_samples.CONTENTS
    made.parent.mkdir()
    folder.rename(made)
    (made / "README.md").write_text("about")

    def write(url, target, filename):
        asked.append(url)
        with tarfile.open(f"{target}/{filename}", "w:gz") as tar:
            tar.add(made, made.name)

    monkeypatch.setattr(fetch, "download_url", write)
    return made


def test_the_archive_is_downloaded_once(folder, monkeypatch):
    asked = []
    packed(folder, monkeypatch, asked)
    for _ in range(2):
        assert len(load_data("imagenet-samples", folder.parent).train) == 2
    assert asked == [imagenet_samples.URL] and imagenet_samples.COMMIT in asked[0]


def test_an_archive_of_other_images_leaves_nothing_unpacked(folder, monkeypatch):
    made = packed(folder, monkeypatch, [])
    (made / f"{NAMES[0]}.JPEG").write_bytes(b"another")
    with pytest.raises(SnowsError, match="holds 5 images with the checksum"):
        load_data("imagenet-samples", folder.parent)
    assert [path.name for path in folder.iterdir()] == [f"{imagenet_samples.CONTENTS}.tar.gz"]


def test_without_a_network_the_message_says_where_to_put_the_archive(tmp_path):
    with pytest.raises(SnowsError, match=r"download=False. Place the archive there \(from https://github.com"):
        load_data("imagenet-samples", tmp_path, download=False)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that holds a network's weights in its order, under names of its own; returns the network."""
    torch.manual_seed(0)
    network = PACKAGE.build()
    state = {f"other.{i}": value for i, value in enumerate(network.state_dict().values())}
    torch.save(state, tmp_path / "weights.pth")
    code = f"class EfficientnetLite0ModelFile:\n    get_model_file_path = lambda: {str(tmp_path / 'weights.pth')!r}\n"
    module = packaged.Package(f"weights_{tmp_path.name}", PACKAGE.locator, PACKAGE.weights)
    (tmp_path / f"{module.module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(packaged.PACKAGES, "efficientnet_lite0", module)
    monkeypatch.setattr(sources, "_is_cached", lambda name: False)
    return network


def test_weights_of_a_package_come_under_the_networks_names(installed):
    found = experiment("efficientnet-lite0").load_model()
    assert not found.training
    for name, value in installed.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_package_of_other_tensors_is_refused(installed, tmp_path):
    state = torch.load(tmp_path / "weights.pth")
    torch.save(dict(list(state.items())[:-1]), tmp_path / "weights.pth")
    with pytest.raises(SnowsError, match="holds 295 tensors that are not the network's 296"):
        experiment("efficientnet-lite0").load_model()


def test_package_and_hub_must_agree_where_both_are_there(installed, monkeypatch):
    monkeypatch.setattr(sources, "_is_cached", lambda name: True)
    monkeypatch.setattr(sources, "_timm_pretrained", lambda name: installed)
    experiment("efficientnet-lite0").load_model()
    monkeypatch.setattr(sources, "_timm_pretrained", lambda name: PACKAGE.build())
    with pytest.raises(SnowsError, match="give different outputs"):
        experiment("efficientnet-lite0").load_model()


def test_without_package_and_hub_the_message_names_the_extra(monkeypatch, no_network):
    missing = packaged.Package("no_such_package", PACKAGE.locator, PACKAGE.weights)
    monkeypatch.setitem(packaged.PACKAGES, "efficientnet_lite0", missing)
    with pytest.raises(SnowsError, match=r"cannot be reached.*snows-core\[imagenet-samples\]"):
        experiment("efficientnet-lite0").load_model()


@pytest.mark.parametrize("size", [0, 1, 2])
def test_rows_take_the_images_that_their_networks_expect(size):
    row = EXPERIMENTS[f"efficientnet-lite{size}"]
    assert row.image_shape == (3, *((224, 224), (240, 240), (260, 260))[size])
    assert row.data == "imagenet-samples" and row.records[0].images == 500
