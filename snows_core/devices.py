"""Where to compute, and how much memory is free there."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

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
PROCESS = Path("/proc/self")


class _Files(NamedTuple):
    """How a version of control groups names its files: limits, what is taken, and what of that can be dropped."""

    limits: tuple[str, ...]
    usage: str
    cached: str


_UNIFIED = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")
_OLDER = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


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
    """Return the bytes that a device has, free or not: a GPU, or for any other what this process may have of the host.

    The limits of control groups are kept, as by :func:`free_memory`.
    """
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    bounds = [_bound(folder, files) for folder, files in _memory_groups(PROCESS)]
    return min([float(psutil.virtual_memory().total), *bounds])


def _left_in_cgroups() -> float:
    """Return the bytes left under the tightest memory limit of this process's control groups; infinite without one."""
    return min((_left(folder, files) for folder, files in _memory_groups(PROCESS)), default=float("inf"))


def _memory_groups(process: Path) -> Iterator[tuple[Path, _Files]]:
    """Yield the folders of the control groups that count the memory of a process, its own and those around it.

    A batch system bounds a job, its steps and their tasks, each in a group inside the other, and any may be the
    tightest. A container sees of all groups what is mounted into it, which need be neither at the usual place nor the
    whole hierarchy, and its own group by a name that may lie outside ("/../.."): what is mounted is then all it has.

    Args:
        process: the process's folder of /proc; there is none but on Linux.
    """
    try:
        members = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in mounts:
        before, _, behind = line.partition(" - ")
        root, top = (part.replace("\\040", " ") for part in before.split(" ")[3:5])  # spaces are escaped there
        kind, _, options = behind.split(" ", 2)
        if kind != "cgroup2" and not (kind == "cgroup" and "memory" in options.split(",")):
            continue
        files = _UNIFIED if kind == "cgroup2" else _OLDER
        for _, controllers, name in (member for member in members if len(member) == 3):
            if (files is _UNIFIED and controllers) or (files is _OLDER and "memory" not in controllers.split(",")):
                continue
            path = PurePosixPath(name)
            inside = path.relative_to(root).parts if path.is_relative_to(root) else ()
            inside = () if ".." in inside else inside
            for depth in range(len(inside), -1, -1):
                yield Path(top).joinpath(*inside[:depth]), files


def _bound(group: Path, files: _Files) -> float:
    """Return the bytes that a control group may take; infinite where it says "max", or nothing."""
    of_outer = _statistics(group).get("hierarchical_memory_limit", math.inf)  # also of those that are not mounted here
    return min(of_outer, *(_number(group / name) for name in files.limits))


def _left(group: Path, files: _Files) -> float:
    """Return the bytes that a control group may still take: files that were read count as free."""
    bound, used = _bound(group, files), _number(group / files.usage)
    cached = _statistics(group).get(files.cached, 0.0)
    return bound if math.inf in (bound, used) else max(0.0, bound - used + cached)


def _number(file: Path) -> float:
    try:
        return float(int(file.read_text()))
    except (OSError, ValueError):
        return math.inf


def _statistics(group: Path) -> dict[str, float]:
    try:
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return {name: float(value) for name, value in lines}
    except (OSError, ValueError):
        return {}


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
