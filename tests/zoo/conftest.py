"""Image files and archives made on the spot."""

import hashlib
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_images():
    """Return a function that writes random images: ``make(folder, count, size=32, mode="RGB", suffix=".png")``."""

    def make(folder, count, size=32, mode="RGB", suffix=".png"):
        folder.mkdir(parents=True, exist_ok=True)
        shape = (size, size) if mode == "L" else (size, size, 3)
        for i in range(count):
            pixels = np.random.RandomState(i).randint(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels, mode=None).save(folder / f"{i:03d}{suffix}")

    return make


@pytest.fixture
def make_cifar_archive(tmp_path, monkeypatch):
    """Return a function that makes an archive like CIFAR-10's: ``make(train, test)``, each (pixels, labels).

    Its checksums are given to the package, so that torchvision's own class verifies them. Training images are spread
    over the five batches. It returns the path of the archive.
    """
    from torchvision import datasets

    from snows_core.zoo import cifar

    def make(train, test):
        folder = tmp_path / "made" / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        parts = [*zip(*(np.array_split(values, 5) for values in train), strict=True), test]
        for name, (pixels, labels) in zip(names, parts, strict=True):
            rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), 3072)  # red, then green, then blue
            (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [int(label) for label in labels]}))
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": cifar.CIFAR10_CLASSES}))
        path = tmp_path / "made" / "cifar-10-python.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            tar.add(folder, folder.name)
        sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}

        class Small(datasets.CIFAR10):
            tgz_md5 = hashlib.md5(path.read_bytes()).hexdigest()
            train_list = [[name, sums[name]] for name in names[:5]]  # noqa: RUF012 - as in the parent class
            test_list = [["test_batch", sums["test_batch"]]]  # noqa: RUF012
            meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}  # noqa: RUF012

        monkeypatch.setattr(cifar.CifarSource, "load_class", lambda source: Small)
        return path

    return make


@pytest.fixture
def no_network(monkeypatch):
    """Let every download fail as it does without a network."""
    import torch
    import torchvision

    from snows_core.zoo import fetch, sources

    def refuse(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(fetch, "download_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(sources, "reachable", lambda url: False)
    monkeypatch.setattr(torchvision.models, "get_model", refuse)
