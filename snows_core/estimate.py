"""What pruning will cost, before anything is pruned: seconds, products and peak memory per layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.devices import resolve_device
from snows_core.errors import LIMIT, integer
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Masks
from snows_core.methods.base import LayerMethod
from snows_core.network.determinism import deterministic_where_asked
from snows_core.network.memory_format import channels_last
from snows_core.provenance import state_digest
from snows_core.result import PruneResult, check_resume
from snows_core.settings import PruneSettings, Sparsities, SparsityPattern, takes_settings
from snows_core.sweep.choose_masks import stage_masks
from snows_core.sweep.image_scores import needs_images, scoring_of, stand_in
from snows_core.sweep.joint_problem import joint_options
from snows_core.sweep.layer_budgets import MEASURED
from snows_core.sweep.layer_steps import layer_steps
from snows_core.sweep.memory import memory_budget
from snows_core.sweep.network_steps import chooses_network_masks, network_steps
from snows_core.sweep.other_costs import allocation_cost, fisher_cost, gradients_cost, refinement_cost
from snows_core.sweep.prepare import Prepared, checked_settings, prepare, with_refinement
from snows_core.sweep.sweep_cost import FEW, SweepCost

COSTS = ("products", "image_products", "seconds")
COLUMNS = ["layer", "k", "products", "image_products", "seconds", "graph_bytes", "peak_bytes"]


@takes_settings
@plain_numerics()
@deterministic_where_asked
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
    the two gives the cost per image and the fixed cost. Row factors are timed once for each size of layer; what else a
    layer-wise method does follows from its cost formula (:func:`snows_core.methods.multiply_adds`) and from what this
    machine does in a second. How many
    products a layer will take is not knowable beforehand: the recipe "fast" is charged its measured mean (7 a layer),
    "paper" its cap; with ``k="auto"`` the longest segment that may be chosen is charged, an upper bound. Every stage
    is charged, each at its own sparsity, and so are layer-wise scores of a saliency that looks at images. For
    sparsities that are yet to be measured (``allocation="measured"``) those of "erk" stand in.

    Args:
        model: network in eval mode; not changed.
        images: a few example images; up to 32 are used.
        pattern: see :class:`~snows_core.settings.PruneSettings`.
        count: how many calibration images the run will have; default: as many as given.
        resume: an interrupted result of the same call; its solved layers cost nothing and have no row.
        **options: single fields of the recipe, for instance ``steps=2`` or ``curvature="hessian"``.

    Returns:
        One row per layer to be pruned: layer, k, products, image_products, seconds, graph_bytes (what the graphs of a
        layer take), peak_bytes (with resting values, beside the network itself). Behind them one row each for
        "(allocation)", "(Fisher)", "(gradients)" and "(joint refinement)", where the run has them; what a method of the
        whole network does with gradients is not foretold.

    Raises:
        SnowsError: as ``prune``.
    """
    settings = checked_settings(estimate, pattern=pattern, **options)
    if count is not None:
        count = min(integer("count", count, 1), settings.max_images or LIMIT)
    parts = calibration_parts(images, settings.max_images if count is None else FEW[-1], few=0)
    whole = sum(map(len, parts)) if count is None else count
    count = min(whole, settings.sweep_images or LIMIT)
    prepared = prepare(model, parts, settings)
    settings = with_refinement(settings, prepared, whole)
    begun, solved = (1, set()) if resume is None else _reached(resume, settings, prepared)
    network = prepared.network
    device = resolve_device(settings.device, next(network.module.parameters()).device)
    prepared.move(device)
    device_type = next(network.module.parameters()).dtype
    example = channels_last(network, first_images(parts, FEW[-1]).to(device, device_type))
    rows = _layer_rows(prepared, settings, example, count, begun, solved)
    if rows or resume is None:
        rows += _other_rows(prepared, settings, example, (count, whole), begun if resume is None else begun + 1)
    return pd.DataFrame(rows, columns=COLUMNS)


def _layer_rows(
    prepared: Prepared, settings: PruneSettings, example: Tensor, count: int, begun: int, solved: Collection[str]
) -> list[dict[str, Any]]:
    """Return what every layer costs, over all stages.

    Args:
        prepared: network and layers, on the device of the run.
        settings: of the run.
        example: a few images, on that device.
        count: images of the sweeps.
        begun: stage that the run begins in.
        solved: layers that are solved in that stage already.
    """
    cost = SweepCost(prepared.network, example, count, memory_budget(settings.max_memory, example.device))
    steps = layer_steps(settings)
    rows: dict[str, dict[str, Any]] = {}
    scoring = scoring_of(settings) if needs_images(settings) else None
    for number, pattern in enumerate(prepared.schedule, start=1):
        layers = [entry for entry in prepared.layers if number > begun or entry.name not in solved]
        if number < begun or not layers:
            continue
        masks, last = _masks(prepared, settings, number), number == len(prepared.schedule)
        methods: list[LayerMethod] = [steps.of_stage(pattern, last).update]
        if steps.choose is not None and steps.choose not in methods:
            methods.insert(0, steps.choose)
        if scoring is not None and not (number == begun and solved):
            methods.insert(0, scoring)
        for row in (row for method in methods for row in cost.rows(method, layers, masks)):
            rows[row["layer"]] = _added(rows.get(row["layer"]), row)
    return list(rows.values())


def _masks(prepared: Prepared, settings: PruneSettings, number: int) -> Masks:
    """Return masks of a stage as the dense weights choose them, on the device of the run."""
    masks, network = prepared.masks, prepared.network
    if number < len(prepared.schedule):
        pattern = prepared.schedule[number - 1]
        masks = stage_masks(network, prepared.layers, pattern, stand_in(settings), settings.seed, {})
    device = next(network.module.parameters()).device
    return {name: mask.to(device) for name, mask in masks.items()}


def _other_rows(
    prepared: Prepared, settings: PruneSettings, example: Tensor, counts: tuple[int, int], begin: int
) -> list[dict[str, Any]]:
    """Return a row each for what a run does beside its sweeps, in place of a layer's.

    Args:
        prepared: network and layers, on the device of the run.
        settings: of the run.
        example: a few images, on that device.
        counts: images of the sweeps, and of joint refinement.
        begin: first stage whose masks are still to be made.
    """
    few, all_of_them = counts
    found: dict[str, Mapping[str, float]] = {}
    if settings.allocation == MEASURED and begin == 1:
        budget = memory_budget(settings.max_memory, example.device)
        found["(allocation)"] = allocation_cost(prepared, settings, example, few, budget)
    if needs_images(settings) and "fisher" in str(settings.saliency):
        stages = len(prepared.schedule) + 1 - begin
        found["(Fisher)"] = fisher_cost(prepared.network, prepared.layers, example, stages * few)
    whole = network_steps(prepared, example, settings)
    if whole is not None:
        stages = len(prepared.schedule) + 1 - begin
        found["(gradients)"] = gradients_cost(whole, example, few, stages)
    if settings.refine:
        masks = _masks(prepared, settings, len(prepared.schedule))
        joint = joint_options(settings)
        found["(joint refinement)"] = refinement_cost(
            prepared.network, prepared.model, prepared.layers, masks, example, all_of_them, joint
        )
    return [{"layer": name, "k": 0, "products": 0.0, "image_products": 0.0, **cost} for name, cost in found.items()]


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
    by_weights = not (needs_images(settings) or chooses_network_masks(settings)) and settings.allocation != MEASURED
    known = layer_steps(settings).choose is None and len(prepared.schedule) == 1 and by_weights
    check_resume(resume, same | {"weights": state_digest(prepared.model)}, prepared.masks if known else None)
    return resume.stage, resume.solved
