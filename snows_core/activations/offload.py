"""Tensors that rest in files, so that they take no memory until they are read.

The files of a process lie in one temporary folder that it has locked. A process that ends takes its folder away; one
that is killed cannot, but its lock is gone with it, and the next one to start removes what it left.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

PREFIX, LOCK = "snows-offload-", "lock"
# By process, as one that was forked has a folder of its own, and by where temporary files lie.
_open: dict[tuple[int, str], tuple[Path, FileLock]] = {}


class DiskTensor:
    """A tensor in a temporary file: written when made, read by :meth:`load`, deleted with this object or at exit.

    Args:
        tensor: any dense tensor; its strides are kept.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.layout = torch.empty_like(tensor, device="meta")
        handle, self.path = tempfile.mkstemp(dir=_folder())
        weakref.finalize(self, _unlink, self.path, os.getpid())
        with os.fdopen(handle, "wb") as file:
            host = torch.empty_like(tensor, device="cpu").copy_(tensor)
            file.write(memoryview(_bytes_of(host)))

    def load(self, device: torch.device | str) -> Tensor:
        """Return the tensor on a device, in memory of its own."""
        tensor = torch.empty_like(self.layout, device="cpu")
        with open(self.path, "rb", buffering=0) as file:
            rest = memoryview(_bytes_of(tensor))
            while len(rest):
                rest = rest[file.readinto(rest) :]
        return tensor.to(device)


def _bytes_of(tensor: Tensor) -> Any:
    """Return a dense CPU tensor's memory as a writable array of bytes."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()


def _unlink(path: str, process: int) -> None:
    if process == os.getpid():  # a child that was forked ends before its parent, which still reads the file
        with suppress(FileNotFoundError):
            os.unlink(path)


def _folder() -> Path:
    """Return the folder of this process, made and locked when it is first needed."""
    key = os.getpid(), tempfile.gettempdir()
    if key not in _open or not _open[key][0].is_dir():
        remove_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = FileLock(folder / LOCK)
        lock.acquire(blocking=False)
        _open[key] = (folder, lock)
        atexit.register(_leave, key)
    return _open[key][0]


def _leave(key: tuple[int, str]) -> None:
    if key[0] == os.getpid() and key in _open:
        folder, lock = _open.pop(key)
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> list[Path]:
    """Remove the folders of processes that were killed; return them. Those of other users and living ones stay."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = FileLock(folder / LOCK)
        with suppress(Timeout, OSError):
            if not (folder / LOCK).exists():  # one that is being made at this moment
                continue
            lock.acquire(blocking=False)
            lock.release()
            shutil.rmtree(folder)
            removed.append(folder)
    return removed
