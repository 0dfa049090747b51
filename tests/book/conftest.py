"""Kernels for the notebooks: libraries loaded already, where such kernels can be had."""

import importlib
import os
import tempfile
from pathlib import Path

import forked_kernels
import pytest

from snows_core.book.checks import KERNEL


@pytest.fixture(scope="session")
def kernels_folder():
    """Start the server of forked kernels once a process; return the folder where Jupyter finds them, or None."""
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
    if kernels_folder is None:
        return KERNEL
    monkeypatch.setenv("JUPYTER_PATH", os.pathsep.join(filter(None, [kernels_folder, os.environ.get("JUPYTER_PATH")])))
    monkeypatch.setattr(importlib.import_module("snows_core.book.reproduce"), "KERNEL", forked_kernels.NAME)
    return forked_kernels.NAME
