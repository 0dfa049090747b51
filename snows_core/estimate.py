"""What pruning will cost, before anything is pruned: seconds, products and peak memory per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.devices import resolve_device
from snows_core.errors import LIMIT, integer
from snows_core.loss.options import LossOptions
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Masks
from snows_core.methods.base import LayerMethod
from snows_core.methods.enough import Enough, enough_for
from snows_core.network.graph import Network, Segment
from snows_core.network.memory_format import channels_last
from snows_core.provenance import state_digest
from snows_core.result import PruneResult, check_resume
from snows_core.settings import PruneSettings, Recipe, Sparsities, SparsityPattern, takes_settings
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors
from snows_core.sweep.choose_masks import stage_masks
from snows_core.sweep.image_scores import needs_images, scoring_of, stand_in
from snows_core.sweep.layer_budgets import MEASURED
from snows_core.sweep.memory import Probe, memory_budget, plan_memory, probe_layers, shortest
from snows_core.sweep.prepare import Prepared, checked_settings, layer_steps, prepare
from snows_core.sweep.select import PrunableLayer

# Mean over the layers of ResNet-20 on CIFAR-10 and of the digits networks; tests/benchmarks compares with real runs.
PRODUCTS_PER_LAYER = 7.0
LINEARISATIONS_PER_LAYER = 1.2
REPEATS = 3
# Images of the two measurements, and of a third in place of the second where a product takes less than SHORT seconds:
# fixed costs and noise would hide what an image costs.
FEW = (2, 8, 32)
SHORT = 0.02
COSTS = ("products", "image_products", "seconds")
COLUMNS = ["layer", "k", "products", "image_products", "seconds", "graph_bytes", "peak_bytes"]


@takes_settings
@plain_numerics()
def estimate(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: SparsityPattern | Sparsities | str | float = PruneSettings.pattern,
    *,
    count: int | None = None,
    resume: PruneResult | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Foretell the cost of the sweep of :func:`snows_core.prune.prune` with the same arguments.

    Every layer's product is timed on two small batches (2 and 8 images, or 32 in a small network); the line through
    the two gives the cost per image and the fixed cost. Row factors are timed once for each size of layer. How many
    products a layer will take is not knowable beforehand: the recipe "fast" is charged its measured mean (7 a layer),
    "paper" its cap; with ``k="auto"`` the longest segment that may be chosen is charged, an upper bound. Every stage
    is charged, each at its own sparsity, and so are scores that look at images, layer by layer. A Fisher, joint
    refinement and the measurement of ``allocation="measured"``, for whose sparsities those of "erk" stand in, are not.

    Args:
        model: network in eval mode; not changed.
        images: a few example images; up to 32 are used.
        pattern: see :class:`~snows_core.settings.PruneSettings`.
        count: how many calibration images the run will have; default: as many as given.
        resume: an interrupted result of the same call; its solved layers cost nothing and have no row.
        **options: single fields of the recipe, for instance ``steps=2`` or ``curvature="hessian"``.

    Returns:
        One row per layer to be pruned: layer, k, products, image_products, seconds, graph_bytes (what the graphs of a
        layer take), peak_bytes (with resting values, beside the network itself).

    Raises:
        SnowsError: as ``prune``.
    """
    settings = checked_settings(estimate, pattern=pattern, **options)
    steps = layer_steps(settings)
    if count is not None:
        count = min(integer("count", count, 1), settings.max_images or LIMIT)
    parts = calibration_parts(images, settings.max_images if count is None else FEW[-1], few=0)
    count = min(sum(map(len, parts)) if count is None else count, settings.sweep_images or LIMIT)
    prepared = prepare(model, parts, settings)
    begun, solved = (1, set()) if resume is None else _reached(resume, settings, prepared)
    network = prepared.network
    device = resolve_device(settings.device, next(network.module.parameters()).device)
    placed = prepared.move(device)
    device_type = next(network.module.parameters()).dtype
    example = channels_last(network, first_images(parts, FEW[-1]).to(device, device_type))
    run = Run(network, example, count, memory_budget(settings.max_memory, device))
    rows: dict[str, dict[str, Any]] = {}
    scoring = scoring_of(settings) if needs_images(settings) else None
    for number, pattern in enumerate(prepared.schedule, start=1):
        last = number == len(prepared.schedule)
        layers = [entry for entry in prepared.layers if number > begun or entry.name not in solved]
        if number < begun or not layers:
            continue
        if not last:
            of_stage = stage_masks(network, prepared.layers, pattern, stand_in(settings), settings.seed, {})
            masks = {name: mask.to(device) for name, mask in of_stage.items()}
        methods: list[LayerMethod] = [steps.of_stage(pattern, last).update]
        if scoring is not None and (number > begun or resume is None):
            methods.insert(0, scoring)
        for row in (row for method in methods for row in run.rows(method, layers, masks if not last else placed)):
            rows[row["layer"]] = _added(rows.get(row["layer"]), row)
    return pd.DataFrame(list(rows.values()), columns=COLUMNS)


def _added(before: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """Return a layer's row with what the stages before cost; memory is that of the largest."""
    if before is None:
        return row
    largest = {name: max(before[name], row[name]) for name in ("graph_bytes", "peak_bytes")}
    return row | {name: before[name] + row[name] for name in COSTS} | largest


def _reached(resume: PruneResult, settings: PruneSettings, prepared: Prepared) -> tuple[int, set[str]]:
    """Return the stage in which an interrupted run was, and the layers solved in it."""
    asked = settings.record()
    names = ("pattern", "k", "recipe", "saliency", "mask", "update", "seed", "stages", "stage_k", "sweep_images")
    same = {name: asked[name] for name in names}
    same["allocation"] = None if settings.allocation is None else {"name": settings.allocation}
    by_weights = not needs_images(settings) and settings.allocation != MEASURED
    known = layer_steps(settings).choose is None and len(prepared.schedule) == 1 and by_weights
    check_resume(resume, same | {"weights": state_digest(prepared.model)}, prepared.masks if known else None)
    return resume.stage, resume.solved


class Measured(NamedTuple):
    """What every layer needs, measured on one batch.

    Attributes:
        images: in the batch.
        probes: layer name to what it needs.
    """

    images: int
    probes: dict[str, Probe]


class Run:
    """A run whose cost is to be foretold; what was measured for a method is kept for its other stages.

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
            cost = _cost(lines, probe, self.count, memory.batch_size, recipe, enough)
            if method.needs.row_factors:
                cost["seconds"] += _factor_seconds(masks[name].flatten(1), memory.factors, self.known)
                read = method.gram_images(masks[name], probe.positions, self.count)
                cost["seconds"] += probe.gram * _rounded(read, self.count, memory.batch_size)
            rows.append({"layer": name, "k": segment.k, **cost})
        return rows


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
) -> dict[str, float]:
    """Return a layer's row; ``enough`` is None where it is solved in closed form, without a product."""
    batches = -(-count // (recipe.batch_size if recipe.mini_batches else batch_size))
    if enough is None:
        products, linearisations, every, curved = 0.0, 0.0, float(count), 0.0
    elif recipe.mini_batches:
        steps = recipe.passes * batches
        products, linearisations = float(recipe.newton.cg_iterations * steps), float(steps)
        every = curved = count / batches
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
