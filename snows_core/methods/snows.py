"""One layer of the sweep: targets, start, preconditioner, Newton, and what came of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from snows_core.activations.cache import ActivationCache, LazyBatches, whole_batches
from snows_core.activations.gram_matrices import normal_equations
from snows_core.activations.offload import DiskTensor
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods.choose_k import choose_segment
from snows_core.methods.enough import Enough, enough_for
from snows_core.network.graph import Network, Segment
from snows_core.network.residual import restart
from snows_core.settings import Recipe
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.newton_cg import NewtonSolution, newton
from snows_core.solvers.row_factors import RowFactors
from snows_core.sweep.select import LayerSelection

NOT_FINITE = "numbers overflowed in its solve; its masked dense weights stay"


@dataclass
class LayerOutcome:
    """What became of one layer: its weight, losses, cost and stop reason (columns of the report)."""

    weight: Tensor
    k: int
    loss_masked: float
    loss_start: float
    loss_end: float
    newton_steps: int
    products: int
    image_products: int
    stop: str
    seconds: float = 0.0

    def as_row(self) -> dict[str, Any]:
        """Return the report's columns."""
        return {name: value for name, value in vars(self).items() if name != "weight"}


def layer_equations(
    network: Network, entry: LayerSelection, pruned: ActivationCache, dense: ActivationCache, images: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the Gram matrix of a layer's input, and the rows ``X y0'`` where the dense input is another one.

    Shapes (groups, d, d) and (out, d), summed over images (the first ``images``, rounded up to whole batches; default
    all) and positions; streams must stand at the layer.
    """
    source, weight = entry.layer.node.all_input_nodes[0], network.weight(entry.layer)

    def response(x0: Tensor) -> Tensor:
        return network.apply(entry.layer, x0) - network.apply(entry.layer, x0[:1], torch.zeros_like(weight))

    def inputs() -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in range(whole_batches(pruned.sizes, images)):
            y0 = None if dense is pruned else response(dense.read(source, batch))
            yield pruned.read(source, batch), y0

    return normal_equations(inputs(), entry.geometry, weight.shape[0])


@dataclass(frozen=True)
class Work:
    """How the solve of a layer is cut to fit in memory; nothing here changes a number.

    Attributes:
        groups: the batches of each mini-batch; one group of all where every step uses all images.
        retain: how many batches may keep their graphs, see :class:`~snows_core.loss.reconstruction.ReconstructionLoss`.
        factor_bytes: bound for the row factors, see :class:`~snows_core.solvers.least_squares.RowFactors`.
        factors_on_disk: whether they rest in files.
    """

    groups: Sequence[Sequence[int]]
    retain: bool | int = True
    factor_bytes: float = 2e9
    factors_on_disk: bool = False


def solve_layer(
    network: Network,
    entry: LayerSelection,
    segments: Sequence[Segment],
    mask: Tensor,
    pruned: ActivationCache,
    dense: ActivationCache,
    recipe: Recipe,
    generator: torch.Generator,
    work: Work | None = None,
) -> LayerOutcome:
    """Re-fit one layer on its mask.

    Args:
        network: the traced network, dense weights.
        entry: the layer.
        segments: the layer and the operations behind it: one, or several to choose from, shortest first.
        mask: bool, weight shape.
        pruned: calibration values reached with the pruned layers before this one, standing at this layer.
        dense: the dense network's values at the taps and at the layer's input (or ``pruned`` itself, for the published
            targets).
        recipe: how to solve.
        generator: random signs for the curvature probe.
        work: how it is cut; default in one group, all graphs kept.

    Returns:
        The new weight and the figures of the report.
    """
    work = work or Work([range(len(pruned.values))])
    layerwise = segments[-1].k == 0
    enough = Enough(curvature=recipe.newton.curvature_images)
    if not layerwise:
        enough = enough_for(recipe, mask, _positions(network, entry, pruned), sum(pruned.sizes))
    read = whole_batches(pruned.sizes, enough.loss)

    def loss_of(segment: Segment) -> ReconstructionLoss:
        return make_objective(network, segment, mask, pruned, dense, recipe, work.retain, read)

    start = masked = torch.where(mask, network.weight(entry.layer), 0.0)
    factors = None
    if recipe.warm_start or recipe.precondition:
        factors, solved = _least_squares(network, entry, mask, pruned, dense, recipe, work, enough.gram)
        start = solved if recipe.warm_start and bool(torch.isfinite(solved).all()) else masked

    def preconditioner(objective: ReconstructionLoss) -> Callable[[Tensor], Tensor] | None:
        if not recipe.precondition or factors is None:
            return None
        factors.scale = objective.row_curvature(start, generator)
        return lambda r: factors.solve(r.flatten(1)).view_as(r)

    segment, *trials = choose_segment(segments, loss_of, start, recipe.newton, preconditioner)
    objective = loss_of(segment)
    objective.products, objective.image_products = trials
    # Where the solve starts elsewhere this is a figure for the report alone: one batch tells it.
    loss_masked = objective.value(masked, None if start is masked or layerwise else 1)
    if layerwise and recipe.warm_start:
        loss = objective.value(start)
        closed = LayerOutcome(start, 0, loss_masked, loss, loss, 0, 0, 0, "least squares in closed form")
        return _finite(closed, masked, entry.name)
    if recipe.mini_batches:
        outcome = _by_mini_batches(objective, work.groups, start, loss_masked, recipe)
        return _finite(outcome, masked, entry.name)
    options = replace(recipe.newton, curvature_images=enough.curvature)
    solution = newton(objective, start, options, preconditioner(objective))
    return _finite(_outcome(solution, segment, loss_masked, objective), masked, entry.name)


def _positions(network: Network, entry: LayerSelection, pruned: ActivationCache) -> float:
    """Return the output positions of a layer for an image."""
    x = pruned.read(entry.layer.node.all_input_nodes[0], 0)[:1]
    return network.apply(entry.layer, x).numel() / network.weight(entry.layer).shape[0]


def _least_squares(
    network: Network,
    entry: LayerSelection,
    mask: Tensor,
    pruned: ActivationCache,
    dense: ActivationCache,
    recipe: Recipe,
    work: Work,
    images: int | None,
) -> tuple[RowFactors, Tensor]:
    """Return the row factors of a layer's input, and the weight that least squares gives, from so many images."""
    own, response = layer_equations(network, entry, pruned, dense, images)
    factors = RowFactors(
        own, mask.flatten(1), recipe.ridge, None, work.factor_bytes, DiskTensor if work.factors_on_disk else None
    )
    weight = network.weight(entry.layer)
    return factors, masked_least_squares(factors, weight.flatten(1), response=response).view_as(weight)


def _finite(outcome: LayerOutcome, masked: Tensor, name: str) -> LayerOutcome:
    """Keep the masked dense weights where a solve ended in numbers that are not finite, and say so."""
    if bool(torch.isfinite(outcome.weight).all()) and math.isfinite(outcome.loss_end):
        return outcome
    warnings.warn(f"layer '{name}': {NOT_FINITE}", stacklevel=5)
    return replace(outcome, weight=masked, loss_end=outcome.loss_masked, newton_steps=0, stop=NOT_FINITE)


def _outcome(
    solution: NewtonSolution, segment: Segment, loss_masked: float, objective: ReconstructionLoss
) -> LayerOutcome:
    start, end = solution.losses[0], solution.losses[-1]
    return LayerOutcome(
        solution.weight,
        segment.k,
        loss_masked,
        start,
        end,
        solution.steps,
        objective.products,
        objective.image_products,
        solution.stop.value,
    )


def _by_mini_batches(
    objective: ReconstructionLoss, groups: Sequence[Sequence[int]], weight: Tensor, loss_masked: float, recipe: Recipe
) -> LayerOutcome:
    """Take one Newton step on each batch in turn, several passes: the published schedule, with its stagnation rule."""
    history: list[float] = []
    steps, products, image_products = 0, objective.products, objective.image_products
    stop = "the passes asked for were made"
    for turn in range(recipe.passes * len(groups)):
        part = objective.on(groups[turn % len(groups)])
        solution = newton(part, weight, recipe.newton)
        weight, steps = solution.weight, steps + solution.steps
        products, image_products = products + part.products, image_products + part.image_products
        history.append(solution.losses[0])
        recent = history[-6:]
        if len(recent) == 6 and all(b / a > 0.995 for a, b in pairwise(recent)):
            stop = "the loss stagnated over five mini-batches"
            break
    return LayerOutcome(
        weight,
        objective.segment.k,
        loss_masked,
        loss_masked,
        objective.value(weight),
        steps,
        products,
        image_products,
        stop,
    )


def make_objective(
    network: Network,
    segment: Segment,
    mask: Tensor,
    pruned: ActivationCache,
    dense: ActivationCache,
    recipe: Recipe,
    retain: bool | int = True,
    batches: int | None = None,
) -> ReconstructionLoss:
    """Return the K-step loss of a segment over the first batches (default: all of them).

    Contexts come from the pruned stream, targets from the dense one.

    A dense stream of its own has run ahead to the last tap and holds the targets; where both are one stream (the
    published targets) the dense network is run from the pruned one's values at the input of the layer's residual unit.
    """
    count, keep = len(pruned.values) if batches is None else batches, not pruned.rests_elsewhere
    above = restart(network, segment) if dense is pruned else None

    def target(batch: int) -> list[Tensor]:
        if above is not None:
            return pruned.restarted(segment, above, batch)
        return [dense.read(tap, batch) for tap in segment.taps]

    return ReconstructionLoss(
        network,
        segment,
        LazyBatches(lambda batch: pruned.context(segment, batch), count, keep),
        LazyBatches(target, count, keep),
        mask,
        recipe.curvature,
        retain,
        recipe.tap_rule,
        recipe.normalise,
        pruned.sizes[:count],
        recipe.precision,
    )
