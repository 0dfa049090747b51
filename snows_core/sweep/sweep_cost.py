"""What a sweep will cost: every layer's product timed on two small batches, its row factors once for each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snows_core.loss.options import LossOptions
from snows_core.masks.patterns import Masks
from snows_core.methods.base import LayerMethod
from snows_core.methods.cost import multiply_adds
from snows_core.methods.enough import Enough, enough_for
from snows_core.network.geometry import geometry_of
from snows_core.network.graph import Network, Segment
from snows_core.settings import Recipe
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors
from snows_core.sweep.memory import Probe, plan_memory, probe_layers, shortest
from snows_core.sweep.rates import measured_rates
from snows_core.sweep.select import PrunableLayer

# Mean over the layers of ResNet-20 on CIFAR-10 and of the digits networks; tests/benchmarks compares with real runs.
PRODUCTS_PER_LAYER = 7.0
LINEARISATIONS_PER_LAYER = 1.2
REPEATS = 3
# Images of the two measurements, and of a third in place of the second where a product takes less than SHORT seconds:
# fixed costs and noise would hide what an image costs.
FEW = (2, 8, 32)
SHORT = 0.02


class Measured(NamedTuple):
    """What every layer needs, measured on one batch.

    Attributes:
        images: in the batch.
        probes: layer name to what it needs.
    """

    images: int
    probes: dict[str, Probe]


class SweepCost:
    """The cost of sweeps of one run; what was measured for a method is kept for its other stages.

    Args:
        network: the traced network, on the device of the run.
        example: a few images, on that device.
        count: how many images the run will have.
        budget: bytes for graphs, row factors and resting values.
    """

    def __init__(self, network: Network, example: Tensor, count: int, budget: float) -> None:
        self.network, self.example = network, example
        self.count, self.budget = count, budget
        self.device = example.device
        self.known: dict[tuple[int, ...], float] = {}
        self.measured: dict[LayerMethod, tuple[Measured, Measured]] = {}

    def rows(self, method: LayerMethod, layers: Sequence[PrunableLayer], masks: Masks) -> list[dict[str, Any]]:
        """Return one row a layer, from what a method was measured on few and on more images."""
        segments = {entry.name: method.segments(self.network, entry.layer)[-1] for entry in layers}
        if method not in self.measured:
            self.measured[method] = _measured(self.network, segments, masks, self.example, method.needs.loss)
        small, large = self.measured[method]
        memory = plan_memory(large.probes, self.count, method.needs.batch_size, self.budget, self.device)
        rows, recipe = [], method.recipe
        for name, segment in segments.items():
            probe = large.probes[name]
            closed = method.closed_form(segment)
            enough = None if closed else Enough(curvature=recipe.newton.curvature_images)
            if segment.k and not closed:
                enough = enough_for(recipe, masks[name], probe.positions, self.count)
            lines = _lines(small.probes[name], small.images, probe, large.images)
            cost = _cost(lines, probe, self.count, memory.batch_size, recipe, enough, method.gradient_steps)
            own, reads_input = self._own_seconds(method, segment, masks[name]) if closed else (0.0, False)
            if method.needs.row_factors:
                own = max(own, _factor_seconds(masks[name].flatten(1), memory.factors, self.known))
            if method.needs.row_factors or reads_input:
                read = method.gram_images(masks[name], probe.positions, self.count)
                own += probe.gram * _rounded(read, self.count, memory.batch_size)
            cost["seconds"] += own
            rows.append({"layer": name, "k": segment.k, **cost})
        return rows

    def _own_seconds(self, method: LayerMethod, segment: Segment, mask: Tensor) -> tuple[float, bool]:
        """Return the seconds of a method by its formula, without what images take, and whether it reads the input.

        Row factors are in the formula, too; where they are timed the larger number counts, as the formula takes them
        to be whole, and the timing knows nothing of how a mask is chosen.
        """
        origin = getattr(method, "origin", None)
        if origin is None:  # what sweeps do beside pruning
            return 0.0, False
        rows, layer = mask.flatten(1), segment.layer
        sizes = {
            **{"o": float(len(rows)), "d": float(rows.shape[1]), "k": float(rows.sum(1).float().mean()), "f": 0.0},
            "g": float(geometry_of(layer.node, self.network.weight(layer)).groups),
        }
        without, one = (multiply_adds(origin.cost, n=n, **sizes) for n in (0.0, 1.0))
        return without.seconds(measured_rates(self.device)), one.total > without.total


def _measured(
    network: Network, segments: Mapping[str, Segment], masks: Masks, example: Tensor, loss: LossOptions
) -> tuple[Measured, Measured]:
    """Measure all layers on two batches of different size, the larger one as large as products are short."""

    def on(images: int) -> Measured:
        return Measured(images, probe_layers(network, segments, masks, example[:images], loss, REPEATS))

    few, many = (min(size, len(example)) for size in FEW[:2])
    small, large = on(few), on(many)
    if len(example) > many and sum(probe.product for probe in large.probes.values()) * many < SHORT * len(segments):
        large = on(len(example))
    return small, large


def _factor_seconds(mask: Tensor, max_bytes: float, known: dict[tuple[int, ...], float]) -> float:
    """Return the seconds of a layer's row factors and its least-squares start, which no image changes."""
    key = (*mask.shape, int(mask.sum(1).max()))
    if key not in known:
        gram = torch.eye(mask.shape[1], device=mask.device)[None]

        def start() -> Tensor:
            return masked_least_squares(RowFactors(gram, mask, max_bytes=max_bytes), mask.to(gram.dtype))

        known[key] = shortest(start, 1, mask.device)
    return known[key]


def _lines(small: Probe, few: int, large: Probe, many: int) -> Mapping[str, tuple[float, float]]:
    """Return (seconds per batch, seconds per image) of a linearisation and of a product."""
    lines = {}
    for name in ("linearise", "product"):
        first, second = getattr(small, name) * few, getattr(large, name) * many
        slope = max(second - first, 0.0) / (many - few) if many > few else second / many
        lines[name] = (max(first - few * slope, 0.0), slope)
    return lines


def _cost(
    lines: Mapping[str, tuple[float, float]],
    probe: Probe,
    count: int,
    batch_size: int,
    recipe: Recipe,
    enough: Enough | None,
    gradient_steps: int,
) -> dict[str, float]:
    """Return a layer's row; ``enough`` is None where it is solved in closed form, without a product."""
    batches = -(-count // (recipe.batch_size if recipe.mini_batches else batch_size))
    if enough is None:
        products, linearisations, every, curved = 0.0, 0.0, float(count), 0.0
    elif recipe.mini_batches:
        steps = recipe.passes * batches
        products, linearisations = float(recipe.newton.cg_iterations * steps), float(steps)
        every = curved = count / batches
    elif gradient_steps:
        products, curved, linearisations = 0.0, 0.0, float(gradient_steps)
        every = _rounded(enough.loss, count, batch_size)
    else:
        products = min(PRODUCTS_PER_LAYER, float(recipe.newton.cg_iterations * recipe.newton.steps))
        linearisations, every = LINEARISATIONS_PER_LAYER, _rounded(enough.loss, count, batch_size)
        curved = _rounded(enough.curvature, every, batch_size)

    def seconds(name: str, times: float, images: float) -> float:
        fixed, per_image = lines[name]
        return times * (fixed * -(-images // batch_size) + per_image * images)

    graph = probe.graph * curved
    # Beside products: two evaluations and the curvature probe, each about half a linearisation.
    total = seconds("product", products, curved) + seconds("linearise", linearisations + 1.5, every)
    return {
        "products": products,
        "image_products": products * curved,
        "seconds": total,
        "graph_bytes": graph,
        "peak_bytes": graph + probe.live * count,
    }


def _rounded(images: int | None, count: float, batch_size: int) -> float:
    """Return the images that whole batches hold."""
    return float(count) if images is None else min(float(count), float(-(-images // batch_size) * batch_size))
