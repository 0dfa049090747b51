"""AdaPrune: the kept weights re-fitted by Adam on the layer's own output, ``||w X - w0 X0||^2`` (Hubara et al. 2021).

The loss is a quadratic in the weights, so its gradient ``2 (w A - w0 X0 X')`` comes from the Gram matrix ``A = X X'``
of all images at once; the published code draws mini-batches. The minimum is that of :mod:`.layerwise`, which one linear
system reaches: this is the rival that shows what a first-order optimiser leaves.
"""

from __future__ import annotations

import torch

from snows_core.methods.base import LayerMethod, LayerSolution
from snows_core.methods.origin import GRAM, NORMAL_EQUATIONS, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.solvers.least_squares import grouped_product

STEPS = 300
RATE = 0.02  # the largest step, relative to the root mean square of the kept weights


class AdaPrune(LayerMethod):
    """Re-fit a layer's kept weights by Adam."""

    origin = Origin(
        paper="Hubara, Chmiel, Island, Banner, Naor & Soudry: Accelerated Sparse Neural Training",
        year=2021,
        needs=GRAM,
        cost=f"{NORMAL_EQUATIONS} + 300 o d^2 + 6,000 o d (passes)",
        limits="comes near the minimum of layerwise, never below it",
    )

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the weight after the last step."""
        gram, response = problem.normal_equations()
        free, mask = problem.masked.flatten(1).clone(), problem.mask.flatten(1)
        target = grouped_product(gram, problem.weight.flatten(1)) if response is None else response  # (out, d)
        scale = gram.diagonal(dim1=1, dim2=2).mean().clamp(min=torch.finfo(gram.dtype).tiny)
        rate = RATE * float(free[mask].square().mean().sqrt())
        optimiser = torch.optim.Adam([free], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
        for _ in range(STEPS):
            free.grad = torch.where(mask, grouped_product(gram, free) - target, 0.0) / scale
            optimiser.step()
            schedule.step()
        weight = free.view_as(problem.weight)
        return self.solution(problem, weight, problem.mask, f"the {STEPS} steps of Adam were taken")
