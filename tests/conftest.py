"""What every test shares: one thread, quiet warnings about few images, and seeds."""

import atexit
import gc

import hypothesis
import pytest

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items):
    """Put the notebooks first in each half: side by side, the longest tests must not be the last to begin."""
    notebooks = [item for item in items if "test_notebooks" in item.nodeid]
    others = [item for item in items if "test_notebooks" not in item.nodeid]
    half = len(others) // 2
    items[:] = [*notebooks[::2], *others[:half], *notebooks[1::2], *others[half:]]


def pytest_collection_finish():
    """Let garbage collections pass over what was imported and collected, a million objects that stay to the end."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # the interpreter takes everything apart in its own order


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    """Seed torch, so that a test does not depend on those before it."""
    import torch  # here, as the process that only hands out tests needs none

    torch.manual_seed(0)


@pytest.fixture
def few_images_are_fine():
    """Silence the warning about few calibration images where a test means to use few."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*calibration images.*")
        yield
