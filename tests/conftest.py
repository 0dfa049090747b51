"""What every test shares: one thread, quiet warnings about few images, and seeds."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items):
    """Put the notebooks first: side by side, the longest tests must not be the last to begin."""
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    """Seed torch, so that a test does not depend on those before it."""
    torch.manual_seed(0)


@pytest.fixture
def few_images_are_fine():
    """Silence the warning about few calibration images where a test means to use few."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*calibration images.*")
        yield
