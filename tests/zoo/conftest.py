"""Image files and archives made on the spot."""

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
