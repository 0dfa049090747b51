"""One thread, real networks: benchmarks compare within one process, so their ratios mean something on any machine."""

import pytest
import torch

from snows_core import zoo


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def resnet():
    """ResNet-20 at 32 x 32 with random weights and 64 random images: time does not depend on what it has learnt."""
    torch.manual_seed(0)
    return zoo.resnet20().eval(), torch.randn(64, 3, 32, 32)


@pytest.fixture(scope="session")
def digits():
    experiment = zoo.experiment("digits-resnet20")
    return experiment, experiment.load_model(), experiment.load_data()
