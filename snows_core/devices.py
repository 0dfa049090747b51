"""Where to compute, and how much memory is free there."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch

from snows_core.errors import invalid_argument

# Bytes that the graph of one batch may take, and the row factors of one layer: fixed for a kind of device, so that the
# same network and images give the same batches and preconditioners whatever memory is free.
BATCH_BYTES = {"cuda": 4e9}
FACTOR_BYTES = {"cuda": 4e9}
# A host's largest values stay below 32 MB so: the C library maps and clears memory anew for every larger result.
BATCH_BYTES_HOST = 1.6e8
FACTOR_BYTES_HOST = 5e8
CGROUPS = Path("/sys/fs/cgroup")


def resolve_device(device: torch.device | str | None, model_device: torch.device) -> torch.device:
    """Return the device to compute on: ``model_device`` unless another one is named.

    Raises:
        SnowsError: when this machine does not have it.
    """
    if device is None:
        return model_device
    reason = "a name, or a number of a GPU"
    if isinstance(device, str | int | torch.device) and not isinstance(device, bool):
        try:
            found = torch.empty(0, device=device).device
            if found.type != "meta" and not (found.type == "cpu" and torch.device(device).index):
                return found
            reason = "nothing is computed there"
        except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    expected = f"a device of this machine ({reason})"
    raise invalid_argument("device", repr(str(device)), expected, 'For instance "cpu".')


def free_memory(device: torch.device) -> float:
    """Return the bytes that can still be had on a device: of a GPU, or of the host for any other.

    A GPU's cache of this process counts as free and is emptied for that. On the host the page cache counts as free,
    and the limits of the control groups (containers, batch systems) that this process is in are kept.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info(device)[0])
    return min(float(psutil.virtual_memory().available), _left_in_cgroups())


def total_memory(device: torch.device) -> float:
    """Return the bytes that a device has, free or not: a GPU, or the host for any other."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().total)


def _left_in_cgroups(root: Path = CGROUPS, of: Path = Path("/proc/self/cgroup")) -> float:
    """Return the bytes left under the tightest memory limit of this process's control groups; infinite without one."""
    try:
        lines = [line.split(":", 2) for line in of.read_text().splitlines()]
    except OSError:
        return float("inf")
    left = float("inf")
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        first = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        names = names if controllers else ("memory.max", "memory.current", "inactive_file")
        folder = first / path.strip("/")
        for group in (folder, *folder.parents):
            if group == first.parent:
                break
            left = min(left, _left(group, *names))
    return left


def _left(group: Path, limit: str, usage: str, cached: str) -> float:
    try:
        bound = int((group / limit).read_text())  # "max" is no number: no limit here
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return float(max(0, bound - int((group / usage).read_text()) + int(statistics.get(cached, 0))))
    except (OSError, ValueError):
        return float("inf")


def peak_memory(device: torch.device) -> float:
    """Return the peak bytes so far: of PyTorch on a GPU, of the whole process (resident) on the CPU; 0 if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
    except ImportError:  # Windows
        return 0.0


def out_of_memory(error: BaseException) -> bool:
    """Tell whether Python or PyTorch, on any device, asked for more memory than there is."""
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def widest(device: torch.device) -> torch.dtype:
    """Return the number format for sums and factors: double precision where the device has it (MPS has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def batch_bytes(device: torch.device) -> float:
    """Return the bytes that the graph of one batch may take on a kind of device."""
    return BATCH_BYTES.get(device.type, BATCH_BYTES_HOST)


def factor_bytes(device: torch.device) -> float:
    """Return the bytes that the row factors of one layer may take on a kind of device."""
    return FACTOR_BYTES.get(device.type, FACTOR_BYTES_HOST)
