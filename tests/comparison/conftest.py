"""The network and images that tests of ``snows.compare`` share."""

from __future__ import annotations

import pytest
import torch
from toys import random_images, small_resnet


@pytest.fixture(scope="module")
def network():
    return small_resnet()


@pytest.fixture(scope="module")
def images():
    return random_images(16)


@pytest.fixture(scope="module")
def test():
    return random_images(40, seed=9), torch.arange(40) % 3
