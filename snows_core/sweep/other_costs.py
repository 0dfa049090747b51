"""What a run costs beside its sweeps: joint refinement, a Fisher, gradients, sparsities that are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snows_core.loss.fisher import diagonal_fisher
from snows_core.masks.allocation import ALLOCATIONS
from snows_core.masks.patterns import Masks
from snows_core.methods import BetweenStages, MeasureLosses
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings, get_recipe
from snows_core.sweep.joint_problem import JointOptions
from snows_core.sweep.measured_allocation import FINALISTS, FITTED, MIXED, POWERS, TRIED
from snows_core.sweep.memory import shortest
from snows_core.sweep.network_steps import NetworkSteps
from snows_core.sweep.prepare import Prepared
from snows_core.sweep.refine import LOOKS_SHARE, SOLVERS, Pair, joint_problem
from snows_core.sweep.refine_natural import REFRESH
from snows_core.sweep.select import PrunableLayer
from snows_core.sweep.sweep_cost import SweepCost

FEW = 2  # images of the smaller batch
Cost = Mapping[str, float]
"""seconds, graph_bytes, and peak_bytes of memory beside the network."""


def refinement_cost(
    network: Network,
    model: nn.Module,
    layers: Sequence[PrunableLayer],
    masks: Masks,
    images: Tensor,
    count: int,
    options: JointOptions,
) -> Cost:
    """Time two steps on two batches; the lines through them tell what a batch of the run takes.

    The first step of the natural solver makes its preconditioner, as every ``REFRESH``-th one does.

    Args:
        network: the traced network, on the device of the run.
        model: the caller's network, from whose weights the steps start.
        layers: those that are pruned.
        masks: layer name to mask, on that device.
        images: a few examples, on that device.
        count: calibration images of the run.
        options: of the joint stage.

    Returns:
        The cost of it.
    """
    names = {entry.name: entry.layer.weight_name for entry in layers}
    held = min(count, options.batch_size)
    sizes = sorted({min(FEW, len(images)), len(images)})
    first: list[float] = []
    later: list[float] = []
    for size in sizes:
        few = replace(
            options, steps=max(2, options.steps), batch_size=size, augment=None, moving_masks=False, progress=False
        )
        problem = joint_problem(Pair(network, model, masks, names), images[:size], few)
        solver = SOLVERS[options.solver](problem)
        for number, found in enumerate((first, later), 1):
            found.append(shortest(lambda: solver.step(number), 1, images.device))  # noqa: B023 - called at once
    step, opening = _at(held, sizes, later), _at(held, sizes, first)
    made = 1 + (options.steps - 1) // REFRESH if options.solver == "natural" else 1
    seconds = (options.steps - made) * step + made * max(step, opening)
    graph = problem.loss.graph_bytes * min(held, problem.loss.piece)
    state = sum(value.numel() * value.element_size() for value in problem.start.values())
    return {"seconds": (1 + LOOKS_SHARE) * seconds, "graph_bytes": graph, "peak_bytes": graph + 4 * state}


def _at(count: int, sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the seconds for ``count`` images, by the line through what one or two sizes took."""
    if len(sizes) == 1:
        return seconds[0] * count / sizes[0]
    slope = max(0.0, (seconds[1] - seconds[0]) / (sizes[1] - sizes[0]))
    return max(seconds[0], seconds[1] + slope * (count - sizes[1]))


def fisher_cost(network: Network, layers: Sequence[PrunableLayer], images: Tensor, count: int) -> Cost:
    """Time the diagonal Fisher information on a few images; it reads each image once.

    Args:
        network: the traced network, on the device of the run.
        layers: those that are scored.
        images: a few examples, on that device.
        count: images that are read in all.

    Returns:
        The cost of it.
    """
    weights = {entry.layer.weight_name: network.weight(entry.layer) for entry in layers}
    generator = torch.Generator().manual_seed(0)
    seconds = shortest(lambda: diagonal_fisher(network, weights, images, generator), 1, images.device)
    state = sum(weight.numel() * weight.element_size() for weight in weights.values())
    return {"seconds": seconds * count / len(images), "graph_bytes": 0.0, "peak_bytes": 3.0 * state}


def gradients_cost(whole: NetworkSteps, images: Tensor, count: int, stages: int) -> Cost:
    """Time the gradients of a method that looks at the whole network, on a few images.

    Args:
        whole: the methods, with these images.
        images: a few examples.
        count: images that are read in a stage.
        stages: how many there are.

    Returns:
        The cost of it: two times the bytes of the gradients, as methods hold a working copy.
    """
    seconds = shortest(whole.look, 1, images.device)
    state = sum(weight.numel() * weight.element_size() for weight in whole.dense.values())
    return {
        "seconds": seconds * stages * count / len(images),
        "graph_bytes": 0.0,
        "peak_bytes": 2.0 * min(whole.room, float(state * count)),
    }


def allocation_cost(prepared: Prepared, settings: PruneSettings, images: Tensor, count: int, budget: float) -> Cost:
    """Add up the sweeps by which sparsities are measured: one over all layers, one a candidate, all stages a finalist.

    Args:
        prepared: network and layers, on the device of the run.
        settings: of the run.
        images: a few examples, on that device.
        count: calibration images of the sweeps.
        budget: bytes of memory.

    Returns:
        The cost of it.
    """
    recipe, masks = get_recipe(settings.recipe), prepared.move(images.device)
    measuring = SweepCost(prepared.network, images, min(count, FITTED), budget)
    rows = measuring.rows(MeasureLosses(recipe, settings.k), prepared.layers, masks)
    seconds = sum(row["seconds"] for row in rows)
    trying = SweepCost(prepared.network, images, min(count, TRIED), budget)
    sweep = sum(row["seconds"] for row in trying.rows(BetweenStages(recipe, 0), prepared.layers, masks))
    sweeps = len(ALLOCATIONS) + len(POWERS) + len(MIXED)
    if len(prepared.schedule) > 1:
        sweeps += FINALISTS * len(prepared.schedule)
    most = {name: max(row[name] for row in rows) for name in ("graph_bytes", "peak_bytes")}
    return {"seconds": seconds + sweeps * sweep, **most}
