"""What a run will need: bytes and seconds per image and layer, probed on a few images; and how it is kept in bounds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from snows_core.errors import bad
from snows_core.graph import Network, Segment
from snows_core.objective import ReconstructionLoss
from snows_core.recipe import Recipe
from snows_core.stream import Stream


@dataclass(frozen=True)
class Probe:
    """One layer's needs per image, measured on a few images with the dense network.

    Attributes:
        graph: bytes of the retained graph that curvature products run through.
        live: bytes of the values that rest in the two streams (cut and targets).
        linearise: seconds for loss and gradient with that graph; 0 when not timed.
        product: seconds for one curvature product; 0 when not timed.
    """

    graph: float
    live: float
    linearise: float
    product: float


@dataclass(frozen=True)
class MemoryPlan:
    """How a run is cut to fit.

    Attributes:
        batch_size: images per batch.
        storage: where values rest between uses: None (with the computation), "cpu", or "disk".
        bytes: budget for graphs and resting values.
    """

    batch_size: int
    storage: str | None
    bytes: float

    @property
    def factors(self) -> float:
        """Bytes that the row factors of a layer may take; never so few that those of a small layer would be cut."""
        return max(0.25 * self.bytes, 2.5e8)

    def retained(self, probe: Probe | None, sizes: list[int], factors: float = 0.0) -> int:
        """Return how many batches may keep their graphs between products, beside row factors of that many bytes."""
        if probe is None:
            return len(sizes)
        resting = 0.0 if self.storage else probe.live * sum(sizes)
        working = probe.graph * max(sizes)  # one batch on its way: a value, a gradient, a graph to be rebuilt
        room = self.bytes - resting - working - min(factors, self.factors)
        return sum(1 for i in range(len(sizes)) if probe.graph * sum(sizes[: i + 1]) <= room)


def free_memory(device: torch.device) -> float:
    """Return the bytes that are free now on a device (of the host, for the CPU)."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 4e9


def memory_budget(max_memory: float | None, device: torch.device) -> float:
    """Read ``max_memory``: bytes, a fraction of what is free, or None for 0.8 of a GPU, 0.5 (at most 3 GB) of a host.

    Returns:
        Bytes.

    Raises:
        SnowsError: when it is not positive.

    >>> memory_budget(2e9, torch.device("cpu"))
    2000000000.0
    """
    if max_memory is None:
        free = free_memory(device)
        return 0.8 * free if device.type == "cuda" else min(0.5 * free, 3e9)
    if isinstance(max_memory, bool) or not isinstance(max_memory, int | float) or not max_memory > 0:
        raise bad("max_memory", repr(max_memory), "bytes (for instance 2e9), or a fraction of the free memory below 1")
    return float(max_memory) * (free_memory(device) if max_memory < 1 else 1)


def probe_layers(
    network: Network,
    segments: Mapping[str, Segment],
    masks: Mapping[str, Tensor],
    example: Tensor,
    recipe: Recipe,
    repeats: int = 0,
) -> dict[str, Probe]:
    """Measure every layer to be solved on a few images of the dense network.

    Args:
        network: the traced network, on the device of the run.
        segments: layer name to segment, in execution order.
        masks: layer name to mask.
        example: a few images on that device.
        recipe: how layers will be solved.
        repeats: how often to time what is timed (the shortest counts); 0 for bytes alone.

    Returns:
        Layer name to its needs per image.
    """
    stream = Stream(network, [example])
    found: dict[str, Probe] = {}
    for name, segment in segments.items():
        stream.advance(network.index[segment.layer.node])
        targets = stream.taps(segment, 0)
        context = stream.context(segment, 0)
        objective = ReconstructionLoss(
            network, segment, [context], [targets], masks[name], recipe.curvature, rule=recipe.taps,
            precision=recipe.precision,
        )  # fmt: skip
        live = _live_bytes(stream, targets)
        found[name] = _probe(objective, network.weight(segment.layer), len(example), live, repeats)
    return found


def _live_bytes(stream: Stream, targets: list[Tensor]) -> float:
    resting = [value for value in stream.values[0].values() if isinstance(value, Tensor)]
    return float(sum(t.numel() * t.element_size() for t in [*resting, *resting, *targets]))


def _probe(objective: ReconstructionLoss, weight: Tensor, images: int, live: float, repeats: int) -> Probe:
    """Add up what autograd saves on the way, and time a linearisation and a product."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        at = objective.linearise(weight)
    graph = sum(storages.values()) / images
    if not repeats:
        return Probe(graph, live / images, 0.0, 0.0)
    linearise = shortest(lambda: objective.linearise(weight), repeats, weight.device)
    product = shortest(lambda: at.product(weight), repeats, weight.device)
    return Probe(graph, live / images, linearise / images, product / images)


def shortest(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the least seconds of several calls: what disturbs a measurement only adds."""
    seconds = []
    for _ in range(repeats):
        start = _clock(device)
        function()
        seconds.append(_clock(device) - start)
    return min(seconds)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def plan_memory(
    probes: Mapping[str, Probe], images: int, recipe: Recipe, bytes_: float, device: torch.device
) -> MemoryPlan:
    """Choose batch size and resting place for a run.

    The largest graph of one batch gets at most a quarter of the budget; values rest where they are computed while they
    take less than half of it, else in host memory, else on disk. The published recipe keeps its mini-batches.

    Returns:
        The plan.
    """
    graph = max(probe.graph for probe in probes.values())
    live = max(probe.live for probe in probes.values()) * images
    batch = recipe.batch_size if recipe.mini_batches else max(1, min(recipe.batch_size, int(0.25 * bytes_ / graph)))
    storage: str | None = None
    if live > 0.5 * bytes_:
        storage = "cpu" if device.type != "cpu" and live < 0.8 * free_memory(torch.device("cpu")) else "disk"
    return MemoryPlan(batch, storage, bytes_)


def peak_memory(device: torch.device) -> float:
    """Return the peak bytes so far: of PyTorch on a GPU, of the whole process (resident) on the CPU; 0 if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
    except ImportError:  # Windows
        return 0.0
