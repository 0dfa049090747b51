"""``k="auto"``: how far a layer's loss should look, decided layer by layer by gain per cost.

A short trial solve with each K of a ladder uses one batch of calibration images; what it gained is read on *another*
batch, at the farthest operation of the ladder. The next larger K has to lower that error by a fixed share for every
doubling of the cost of a product, else the climb ends. Costs are floating-point operations, not seconds, so that a
choice is reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.network.graph import Layer, Network, Segment
from snows_core.settings import K, NewtonOptions, TapRule
from snows_core.solvers.newton_cg import newton

LADDER = (2, 5, 10, 20)
# The error far behind the layer has to fall by this share for each doubling of a product's cost.
SHARE_PER_DOUBLING = 0.08


def ladder(network: Network, layer: Layer, k: K, tap_rule: TapRule = "all") -> tuple[Segment, ...]:
    """Return the segments to choose from, shortest first: one for a fixed K."""
    steps = LADDER if k == "auto" else (k,)
    segments = [network.segment(layer, step, tap_rule) for step in steps]
    return tuple(s for i, s in enumerate(segments) if i == 0 or s.k > segments[i - 1].k)


def choose_segment(
    segments: Sequence[Segment],
    objective: Callable[[Segment], ReconstructionLoss],
    start: Tensor,
    options: NewtonOptions,
    preconditioner: Callable[[ReconstructionLoss], Callable[[Tensor], Tensor] | None],
) -> tuple[Segment, int, int]:
    """Climb the ladder while it pays.

    Args:
        segments: from :func:`ladder`.
        objective: segment to its loss over all calibration batches.
        start: weight to start each trial from.
        options: Newton settings; a trial takes one step.
        preconditioner: makes the preconditioner of CG for a trial's loss.

    Returns:
        The segment chosen, and what the trials took: curvature products, and products times images.
    """
    chosen, products, image_products = segments[0], 0, 0
    if len(segments) == 1:
        return chosen, products, image_products
    batches = len(objective(segments[-1]).contexts)
    far = objective(segments[-1]).on([1 % batches])
    error = cost = math.inf
    for segment in segments:
        trial = objective(segment).on([0])
        solution = newton(trial, start, replace(options, steps=1), preconditioner(trial))
        products, image_products = products + trial.products, image_products + trial.image_products
        there, price = far.per_tap(solution.weight)[-1], _flops(trial, start)
        if error < math.inf and error - there < SHARE_PER_DOUBLING * error * math.log2(price / cost):
            break
        chosen, error, cost = segment, there, price
    return chosen, products, image_products


def _flops(objective: ReconstructionLoss, weight: Tensor) -> float:
    """Return the floating-point operations of one forward pass of a segment; a product takes a multiple of it."""
    with FlopCounterMode(display=False) as counter:
        objective.value(weight)
    return max(objective.share.processes.total_number(float(counter.get_total_flops())), 1.0)
