"""What every test shares: one thread, quiet warnings about few images, and seeds."""

import atexit
import gc
import importlib
import os
import tempfile
from pathlib import Path

import hypothesis
import pytest

# As modules with doctests, the files of fixtures would stand in each other's way: they have one name.
collect_ignore_glob = ["**/conftest.py", "conftest.py"]

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


@pytest.fixture(scope="session")
def kernels_folder():
    """Start the server of forked kernels once a process; return the folder where Jupyter finds them, or None."""
    import forked_kernels

    if not forked_kernels.available():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="snows-") as folder:
        kernels = forked_kernels.ForkedKernels(Path(folder))
        yield folder
        kernels.close()


@pytest.fixture
def kernel_name(kernels_folder, monkeypatch):
    """Let this test's notebooks, and those that it reproduces, run in such a kernel; return its name."""
    import forked_kernels

    from snows_core.book.checks import KERNEL

    if kernels_folder is None:
        return KERNEL
    monkeypatch.setenv("JUPYTER_PATH", os.pathsep.join(filter(None, [kernels_folder, os.environ.get("JUPYTER_PATH")])))
    monkeypatch.setattr(importlib.import_module("snows_core.book.reproduce"), "KERNEL", forked_kernels.NAME)
    return forked_kernels.NAME
