"""Tensors that rest in files, so that they take no memory until they are read."""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import Any

import torch
from torch import Tensor


class DiskTensor:
    """A tensor in a temporary file: written when made, read by :meth:`load`, deleted with this object or at exit.

    Args:
        tensor: any dense tensor; its strides are kept.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.layout = torch.empty_like(tensor, device="meta")
        handle, self.path = tempfile.mkstemp(prefix="snows-")
        weakref.finalize(self, _unlink, self.path)
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


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
