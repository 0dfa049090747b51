"""What a number was made with: versions, commit, device, seed, time."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("snows-core", "torch", "torchvision", "timm", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which a result depends."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """Return the git commit of this package's checkout (with ``+changes`` when it is edited), or None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
        edited = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "snows_core"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if edited else "")


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a tensor's shape and float32 contents."""
    return images_digest([tensor])


def images_digest(parts: Sequence[torch.Tensor]) -> str:
    """Return the digest that the parts have when they are one tensor, without putting them together."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    digest = hashlib.sha256(str(shape).encode())
    for piece in (piece for part in parts for piece in part.split(64)):
        _add(digest, piece)
    return digest.hexdigest()[:16]


def state_digest(model: torch.nn.Module) -> str:
    """Return the digest of all weights and buffers of a model, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            _add(digest, value)
    return digest.hexdigest()[:16]


def _add(digest: Any, tensor: torch.Tensor) -> None:
    digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy())


def provenance(**more: Any) -> dict[str, Any]:
    """Return a JSON-ready record of commit, versions, machine and time, extended by what the caller knows.

    Args:
        **more: for instance ``seed=0, profile="digits", calibration=[3, 5]``; must be JSON-serialisable.
    """
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }
