"""No file of weights, data or archive runs code: each place is tried with a pickle that would make a folder."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import zipfile

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from snows_core import files
from snows_core.errors import SnowsError
from snows_core.zoo import cifar, cifar_subset, experiment, fetch, sources, weights
from snows_core.zoo.data import load_data

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"
GCVIT = "gcvit_xxtiny_224_nvidia-d1d86009.pth"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def _zipped(path, bomb):
    with zipfile.ZipFile(path, "w") as archive:  # torch.hub unpacks a file of one member and loads that
        archive.writestr("inner.pth", pickle.dumps(bomb))


FORMS = {
    "zip": lambda path, bomb: torch.save({"state_dict": bomb}, path),
    "legacy": lambda path, bomb: torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=False),
    "pickle": lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
    "zip in the hub": _zipped,
}


@pytest.fixture(params=FORMS)
def plant(request, tmp_path):
    """Return a function that writes a malicious file; afterwards its code must not have run."""
    marker = tmp_path / "code has run"

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMS[request.param](path, Bomb(marker))
        return path

    yield write
    assert not marker.exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the folder of torch.hub's files, in a cache of its own, without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("no download is needed"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def names_without_checksum(monkeypatch):
    """Leave the checksum in file names aside, so that the file is read."""
    monkeypatch.setattr(weights, "NAMED_HASH", weights.re.compile("never^"))


def test_the_bomb_works(tmp_path):
    with pytest.raises(FileExistsError):
        pickle.loads(pickle.dumps(Bomb(tmp_path)))


CACHED = [("torchvision/squeezenet1_1", SQUEEZENET), ("timm/gcvit_xxtiny.in1k", GCVIT)]


@pytest.mark.parametrize(("source", "name"), CACHED)
def test_a_cached_file_with_another_checksum_is_not_opened(hub, plant, source, name, monkeypatch):
    path = plant(hub / name)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was opened"))
    with pytest.raises(SnowsError, match=f"weights: .*{name} has the wrong checksum .*Delete it"):
        sources.pretrained(source)
    assert path.exists()


@pytest.mark.parametrize(("source", "name"), CACHED)
@pytest.mark.parametrize("allowed", [None, "1"])
def test_a_cached_file_without_a_checksum_runs_no_code(
    hub, plant, names_without_checksum, source, name, allowed, monkeypatch
):
    if allowed:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", allowed)
    plant(hub / name)
    with pytest.raises(SnowsError, match=f"weights: .* cannot be read from .*{name} .*Delete .*weights='<path>'"):
        sources.pretrained(source)
    assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == allowed


@pytest.mark.parametrize("source", ["timm/test_resnet.r160_in1k", "hub/edadaltocg/resnet50_cifar100"])
def test_a_file_of_the_model_hub_runs_no_code(tmp_path, plant, source, monkeypatch):
    path = plant(tmp_path / "pytorch_model.bin")
    found = {"pytorch_model.bin": str(path)}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: found.get(file))
    with pytest.raises(SnowsError, match=r"weights: .*pytorch_model.bin.* cannot be read|cannot be read from .*bin"):
        sources.pretrained(source)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.ckpt", "w.pth.tar", "w.safetensors"])
def test_a_file_of_weights_runs_no_code(tmp_path, plant, name):
    with pytest.raises(SnowsError, match=f"weights: got '.*{name}', which cannot be read"):
        experiment("digits-resnet20").load_model(weights=plant(tmp_path / name))


def test_the_published_resnet20_runs_no_code(hub, plant):
    plant(hub / weights.RESNET20_FILE)
    with pytest.raises(SnowsError, match="wrong checksum"):
        sources.pretrained("published/resnet20")


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_files_of_cifar_run_no_code(tmp_path, name, monkeypatch):
    """One file is malicious, the checksums of all others are taken as right."""
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    kind = cifar.SOURCES["cifar10"].load_class()
    for file, _ in (*kind.train_list, *kind.test_list):
        (folder / file).write_bytes(pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": cifar.CIFAR10_CLASSES}))
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "code has run")))

    def compare(file, md5):
        return os.path.basename(file) != name or fetch.digest(folder / name, "md5") == md5

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", compare)
    with pytest.raises(SnowsError, match=r"damaged \(checksum mismatch\)"):
        load_data("cifar10", tmp_path)
    assert not (tmp_path / "code has run").exists()


def _member(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _link(name, target):
    return _member(name, tarfile.SYMTYPE, target)


OUTSIDE = {
    "a path upwards": lambda out: tarfile.TarInfo("../escaped"),
    "a link out of the folder": lambda out: _link("contents/link", "../../escaped"),
    "a link to an absolute path": lambda out: _link("contents/link", str(out)),
    "a hard link out of the folder": lambda out: _member("contents/link", tarfile.LNKTYPE, "../../escaped"),
    "a device file": lambda out: _member("contents/null", tarfile.CHRTYPE),
    "a block device": lambda out: _member("contents/disk", tarfile.BLKTYPE),
    "a pipe": lambda out: _member("contents/pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_archives_cannot_write_outside_their_folder(tmp_path, monkeypatch, name):
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "x.tar", "w") as tar:
        tar.add(os.path.dirname(__file__), "contents", recursive=False)
        tar.addfile(OUTSIDE[name](tmp_path / "escaped"))
    monkeypatch.setattr(fetch, "digest", lambda file, method: "right")
    with pytest.raises(SnowsError, match=r"x.tar cannot be unpacked \(\w+Error: .*Delete it"):
        fetch.obtain_archive("x.tar", ["https://example.org/x.tar"], "right", folder, "contents")
    assert not (tmp_path / "escaped").exists() and [path.name for path in folder.iterdir()] == ["x.tar"]


def _archive_of_zeros(path, mode, sizes):
    with tarfile.open(path, mode) as tar:
        tar.add(os.path.dirname(__file__), "contents", recursive=False)
        for i, size in enumerate(sizes):
            member = tarfile.TarInfo(f"contents/{i}")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))


@pytest.mark.parametrize(("mode", "sizes"), [("w:gz", [30_000_000]), ("w:xz", [400_000] * 4), ("w:bz2", [2_000_000])])
def test_an_archive_of_which_little_becomes_much_is_refused(tmp_path, monkeypatch, mode, sizes):
    written = []
    _archive_of_zeros(tmp_path / "x.tar", mode, sizes)
    extract = tarfile.TarFile.makefile
    monkeypatch.setattr(
        tarfile.TarFile,
        "makefile",
        lambda tar, member, *rest: written.append(member.size) or extract(tar, member, *rest),
    )
    with pytest.raises(SnowsError, match=r"x.tar cannot be unpacked \(TarError: it unpacks to more than 1,.* bytes"):
        fetch.obtain_archive("x.tar", [], None, tmp_path, "contents", download=False)
    assert sum(written) <= 1_300_000  # nothing beyond the bound was written on the way
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_MEMBERS", 5)
    _archive_of_zeros(tmp_path / "x.tar", "w", [1] * 5)
    with pytest.raises(SnowsError, match="or 5 files"):
        fetch.obtain_archive("x.tar", [], None, tmp_path, "contents", download=False)
    monkeypatch.setattr(fetch, "MOST_MEMBERS", 6)
    assert len(list(fetch.obtain_archive("x.tar", [], None, tmp_path, "contents", download=False).iterdir())) == 5


def test_absolute_names_stay_in_the_folder(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(os.path.dirname(__file__), "contents", recursive=False)
        member = tarfile.TarInfo(f"{tmp_path}/escaped")
        tar.addfile(member)
    fetch.obtain_archive("x.tar", [], None, tmp_path, "contents", download=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contents", "x.tar"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
@pytest.mark.parametrize("spoil", ["cut", "cut between", "flip", "text", "nothing"])
def test_damaged_archives_are_one_sentence_and_leave_nothing(tmp_path, mode, spoil):
    _archive_of_zeros(tmp_path / "x.tar", mode, [3000, 3000])
    content = bytearray((tmp_path / "x.tar").read_bytes())
    middle = len(content) // 2  # of a plain archive: where its second file begins
    cut, between = content[: middle + (700 if mode == "w" else 9)], content[:middle]
    content[middle] ^= 0xFF
    spoilt = {"cut": cut, "cut between": between, "flip": content, "text": b"no archive", "nothing": b""}[spoil]
    (tmp_path / "x.tar").write_bytes(spoilt)
    with pytest.raises(SnowsError, match=r"x.tar(:| cannot be unpacked \()") as caught:
        fetch.obtain_archive("x.tar", [], None, tmp_path, "contents", download=False)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_download_that_fails_takes_its_folders_away(tmp_path, no_network):
    with pytest.raises(SnowsError, match="could not be downloaded"):
        fetch.obtain_archive("x.tar", ["https://example.org/x.tar"], None, tmp_path / "a" / "b", "contents")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(SnowsError, match="could not be downloaded"):
        fetch.obtain_archive("x.tar", ["https://example.org/x.tar"], None, tmp_path / "a" / "b", "contents")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_weights_that_cannot_be_downloaded_leave_no_folders(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(SnowsError, match="could not be downloaded"):
        sources.pretrained("published/resnet20")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["cut", "text", "nothing", "gone"])
def test_damaged_files_of_the_package_say_how_to_get_them_anew(tmp_path, monkeypatch, spoil):
    shutil.copytree(weights.CHECKPOINTS, tmp_path / "checkpoints")
    monkeypatch.setattr(weights, "CHECKPOINTS", tmp_path / "checkpoints")
    shutil.copy(cifar_subset.FILE, tmp_path)
    places = [tmp_path / "checkpoints" / "digits-resnet20.safetensors", tmp_path / cifar_subset.FILE.name]
    places += [tmp_path / "checkpoints" / "digits-resnet20.json"] * (spoil != "gone")
    for path in places:
        content = path.read_bytes()
        path.unlink()
        if spoil != "gone":
            path.write_bytes({"cut": content[: len(content) // 2], "text": b"{no", "nothing": b""}[spoil])
    asked = [lambda: experiment("digits-resnet20").load_model(), lambda: cifar_subset.read_list(places[1])]
    asked += [lambda: weights.shipped_record("digits-resnet20")] * (spoil != "gone")
    for path, call in zip(places, asked, strict=True):
        with pytest.raises(SnowsError, match=rf"^{path} is damaged \(.*pip install --force-reinstall") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda state: {1: torch.zeros(2)}, "holds no state dict"),
        (lambda state: state | {"fc.weight": torch.full_like(state["fc.weight"], float("nan"))}, "NaN or infinite"),
        (lambda state: state | {"fc.weight": torch.full_like(state["fc.weight"], float("inf"))}, "NaN or infinite"),
        (lambda state: state | {"fc.weight": state["fc.weight"].to_sparse()}, "sparse, nested or quantized"),
        (lambda state: state | {"fc.weight": state["fc.weight"].to("meta")}, "without values"),
        (lambda state: state | {"fc.weight": state["fc.weight"].to(torch.complex64)}, "complex"),
        (lambda state: state | {"fc.weight": state["fc.weight"].int()}, "has the numbers torch.int32"),
    ],
)
def test_weights_that_are_none_are_named(tmp_path, content, words):
    chosen = experiment("digits-resnet20")
    torch.save(content(chosen.load_model().state_dict()), tmp_path / "w.pth")
    with pytest.raises(SnowsError, match=rf"^weights: got '.*w.pth', wh.*{words}") as caught:
        chosen.load_model(weights=tmp_path / "w.pth")
    assert caught.value.argument == ""  # another option would not help


def test_a_python_without_the_filter_unpacks_nothing(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(os.path.dirname(__file__), "contents", recursive=False)
    monkeypatch.setattr(fetch, "digest", lambda file, method: "right")
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(SnowsError, match=r"Update to its newest bug-fix release"):
        fetch.obtain_archive("x.tar", [], "right", tmp_path, "contents")
    assert not (tmp_path / "contents").exists()


def test_a_right_file_in_the_cache_is_read(hub, monkeypatch, tmp_path):
    """A file of random weights under a name that has its checksum, at the address that torchvision knows."""
    from torchvision import models

    torch.manual_seed(0)
    original = models.squeezenet1_1()
    hub.mkdir(parents=True)
    torch.save(original.state_dict(), hub / "plain.pth")
    name = f"squeezenet1_1-{fetch.digest(hub / 'plain.pth', 'sha256')[:8]}.pth"
    shutil.move(hub / "plain.pth", hub / name)
    value = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(value, "url", f"https://example.org/{name}")
    loaded = sources.pretrained("torchvision/squeezenet1_1")
    assert torch.equal(loaded.features[0].weight, original.features[0].weight) and not loaded.training


def test_variables_of_the_users_are_back_after_an_error(monkeypatch):
    monkeypatch.setenv(files.FORCE_NOT, "1")
    monkeypatch.setenv(files.FORCE, "0")
    with pytest.raises(ValueError), files.safe_unpickling():
        assert os.environ[files.FORCE] == "1" and files.FORCE_NOT not in os.environ
        raise ValueError
    assert os.environ[files.FORCE] == "0" and os.environ[files.FORCE_NOT] == "1"


def test_checksums_are_those_of_hashlib(tmp_path):
    save_file({"weight": torch.zeros(700_000)}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    assert fetch.digest(tmp_path / "w", "md5") == hashlib.md5(content).hexdigest()
    assert fetch.digest(tmp_path / "w", "sha256") == hashlib.sha256(content).hexdigest()
