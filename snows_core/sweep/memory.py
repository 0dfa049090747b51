"""What a run will need: bytes and seconds per image and layer, probed on a few images; and how it is kept in bounds.

The bound decides where values rest, how many graphs are kept and which are built again; never how the images are cut
into batches, hence no number of the result.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snows_core.activations.cache import ActivationCache
from snows_core.activations.gram_matrices import normal_equations
from snows_core.devices import batch_bytes, factor_bytes, free_memory
from snows_core.loss.graph_bytes import saved_bytes
from snows_core.loss.options import LossOptions
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.network.determinism import refused_kernel
from snows_core.network.geometry import geometry_of
from snows_core.network.graph import Network, Segment
from snows_core.settings import read_max_memory

HOLES = 0.2  # share of a bound that freed memory between blocks in use takes
# Bytes of a host that any run takes: pieces of a layer's input as a matrix, what is computed of them, and such holes.
LEAST = 1.2e8


@dataclass(frozen=True)
class Probe:
    """One layer's needs per image, measured on a few images with the dense network.

    Attributes:
        graph: bytes of the retained graph that curvature products run through.
        live: bytes of the values that rest in the two caches (cut and targets).
        dense: bytes of the layer's own dense values, its input and targets.
        linearise: seconds for loss and gradient with that graph; 0 when not timed.
        product: seconds for one curvature product; 0 when not timed.
        positions: output positions of the layer for an image.
    """

    graph: float
    live: float
    linearise: float
    product: float
    positions: float = 1.0
    dense: float = 0.0
    gram: float = 0.0


@dataclass(frozen=True)
class MemoryPlan:
    """How a run is cut to fit.

    Attributes:
        batch_size: images per batch at most.
        storage: where values rest between uses: None (with the computation), "cpu", or "disk".
        bytes: budget for graphs, row factors and resting values.
        factors: bytes that the row factors of a layer may take.
        pin: whether values in host memory may be pinned.
    """

    batch_size: int
    storage: str | None
    bytes: float
    factors: float
    pin: bool = True

    def factors_on_disk(self, factors: float) -> bool:
        """Tell whether row factors of that many bytes have to rest in files."""
        return min(factors, self.factors) > 0.3 * self.bytes

    def working(self, probe: Probe, sizes: list[int], factors: float = 0.0) -> float:
        """Return the bytes that rows on their way may take, beside resting values and row factors, before any graph."""
        resting = 0.0 if self.storage else probe.live * sum(sizes)
        factors = 0.0 if self.factors_on_disk(factors) else min(factors, self.factors)
        return max(0.0, (1 - HOLES) * self.bytes - resting - factors)

    def retained(self, probe: Probe | None, sizes: list[int], factors: float = 0.0, copied: bool = False) -> int:
        """Return how many batches may keep their graphs between products, beside row factors of that many bytes.

        Args:
            probe: the layer's needs per image; None where they are not known.
            sizes: images of each batch.
            factors: bytes of the row factors.
            copied: whether the graphs read copies of the values that rest, not the values themselves.
        """
        if probe is None:
            return len(sizes)
        resting = (0.0 if self.storage else probe.live * sum(sizes)) + (probe.live * sum(sizes) if copied else 0.0)
        working = on_its_way(probe.graph, probe.live, max(sizes))
        factors = 0.0 if self.factors_on_disk(factors) else min(factors, self.factors)
        room = (1 - HOLES) * self.bytes - resting - working - factors
        return sum(1 for i in range(len(sizes)) if probe.graph * sum(sizes[: i + 1]) <= room)


def on_its_way(graph: float, live: float, images: int) -> float:
    """Return the bytes of one batch at work: what is read for it, its values and gradients, and a graph to be rebuilt.

    Args:
        graph: bytes of its graph per image.
        live: bytes of the values that rest in the caches per image.
        images: in the batch.
    """
    return (3 * graph + live) * images


def memory_budget(max_memory: float | None, device: torch.device) -> float:
    """Read ``max_memory``: bytes, a fraction of what is free, or None for 0.8 of a GPU, 0.5 (at most 2.5 GB) of a host.

    Returns:
        Bytes.

    Raises:
        SnowsError: when it is neither a fraction below 1 nor a number of bytes that can be meant.

    >>> memory_budget(2e9, torch.device("cpu"))
    2000000000.0
    """
    bound = read_max_memory(max_memory)
    if bound is None:
        free = free_memory(device)
        return 0.8 * free if device.type == "cuda" else min(0.5 * free, 2.5e9)
    return bound * (free_memory(device) if bound < 1 else 1)


def probe_layers(
    network: Network,
    segments: Mapping[str, Segment],
    masks: Mapping[str, Tensor],
    example: Tensor,
    loss: LossOptions,
    repeats: int,
) -> dict[str, Probe]:
    """Measure every layer to be solved on a few images of the dense network.

    Args:
        network: the traced network, on the device of the run.
        segments: layer name to segment, in execution order.
        masks: layer name to mask.
        example: a few images on that device.
        loss: how the loss of the method is computed that will solve them.
        repeats: how often to time what is timed (the shortest counts); 0 for bytes alone.

    Returns:
        Layer name to its needs per image; without the layers whose segment has no second derivative somewhere.
    """
    cache = ActivationCache(network, [example])
    found: dict[str, Probe] = {}
    for name, segment in segments.items():
        cache.advance(network.index[segment.layer.node])
        targets = cache.taps(segment, 0)
        context = cache.context(segment, 0)
        objective = ReconstructionLoss(
            network,
            segment,
            [context],
            [targets],
            masks[name],
            replace(loss, normalise=False),
        )
        live = _live_bytes(cache, targets)
        try:
            measured = _probe(objective, network.weight(segment.layer), len(example), live, repeats)
            x = cache.read(segment.layer.node.all_input_nodes[0], 0)
            found[name] = replace(
                measured,
                positions=targets[0][0].numel() / len(masks[name]),
                dense=sum(t.numel() * t.element_size() for t in (x, *targets)) / len(example),
                gram=_gram_seconds(network, segment, x, repeats) if repeats else 0.0,
            )
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError) or segment.k == 0 or refused_kernel(error) is not None:
                raise
    return found


def _gram_seconds(network: Network, segment: Segment, x: Tensor, repeats: int) -> float:
    """Return the seconds that an image's part of a layer's normal equations takes."""
    weight = network.weight(segment.layer)
    geometry, y0 = geometry_of(segment.layer.node, weight), network.apply(segment.layer, x)
    return shortest(lambda: normal_equations([(x, y0)], geometry, len(weight)), repeats, x.device) / len(x)


def _live_bytes(cache: ActivationCache, targets: list[Tensor]) -> float:
    resting = [value for value in cache.values[0].values() if isinstance(value, Tensor)]
    return float(sum(t.numel() * t.element_size() for t in [*resting, *resting, *targets]))


def _probe(objective: ReconstructionLoss, weight: Tensor, images: int, live: float, repeats: int) -> Probe:
    """Add up what autograd saves on the way, see that a product can be had, and time both where asked for."""
    with saved_bytes(objective.network) as storages:
        at = objective.linearise(weight)
    graph = sum(storages.values()) / images
    at.product(weight)
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
    probes: Mapping[str, Probe], images: int, batch_size: int, bytes_: float, device: torch.device
) -> MemoryPlan:
    """Choose batch size and resting place for a run.

    The largest graph of one batch gets a fixed number of bytes (or one image's, where that is more); values rest where
    they are computed while they take less than half of the budget, else in host memory, else on disk.

    Args:
        probes: the layers' needs per image.
        images: how many there will be.
        batch_size: images per batch at most.
        bytes_: the budget.
        device: where the run computes.

    Returns:
        The plan.
    """
    graph = max(probe.graph for probe in probes.values())
    live = max(probe.live for probe in probes.values()) * images
    batch = max(1, min(batch_size, int(batch_bytes(device) / max(graph, 1.0))))
    least = on_its_way(graph, live / images, batch) / (1 - HOLES) + (0.0 if device.type == "cuda" else LEAST)
    if least > bytes_:
        warnings.warn(
            f"max_memory: {bytes_ / 1e6:.0f} MB are less than the {least / 1e6:.0f} MB that one batch of "
            f"{batch} images may take here; it is taken all the same, everything else rests on disk",
            stacklevel=6,
        )
    storage, pin = None, True
    if live > 0.5 * bytes_:
        host = free_memory(torch.device("cpu"))
        storage, pin = ("cpu" if device.type != "cpu" and live < 0.7 * host else "disk"), live < 0.25 * host
    return MemoryPlan(batch, storage, bytes_, factor_bytes(device), pin)
