"""OBC: weights removed one at a time by exact optimal-brain-surgeon steps (Frantar & Alistarh 2022).

"Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning". Its ExactOBS removes
from a row the weight that costs least, re-fits the others, and goes on (Algorithm 1,
:mod:`snows_core.solvers.exact_obs`). For an unstructured mask every row is traced to its end, and the steps of all
rows are then taken in the order of their costs (Algorithm 2); for N:M a step takes the cheapest weight of those
groups that still have more than N.

The loss is that of :mod:`.choosing`: rows begin at its minimum w*. The weights after all steps of a row are the
minimum on what it keeps, and are had from one factorisation there, as in the paper's group step. Rows are traced in
batches that the budget has room for; all of a row's steps take O(d^3), of a layer O(out d^3): wide layers take long.
"""

from __future__ import annotations

from torch import Tensor

from snows_core.masks.patterns import NM
from snows_core.methods.choosing import RefittedChoice, damped_problem, pattern_of, removed_count
from snows_core.methods.origin import GRAM, LEAST_SQUARES, NORMAL_EQUATIONS, QUADRATIC, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.methods.swaps import groups_of
from snows_core.solvers.exact_obs import cheapest_removals, removal_in_groups, removal_order


class ExactObs(RefittedChoice):
    """Choose a layer's mask by ExactOBS, and re-fit the weights that it keeps."""

    origin = Origin(
        paper="Frantar & Alistarh: Optimal Brain Compression: A Framework for Accurate Post-Training Quantization "
        "and Pruning",
        year=2022,
        needs=GRAM,
        cost=f"{NORMAL_EQUATIONS} + {QUADRATIC} + 0.4 o d^3 + 50 o d^2 (passes) + {LEAST_SQUARES}",
        limits="wide layers take long; sees the layer's own output alone",
    )

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask of greedy exact removals."""
        pattern, allowed = pattern_of(problem), problem.mask.flatten(1)
        damped, best = damped_problem(problem, self.recipe.ridge)
        room = problem.budget.working_bytes
        if isinstance(pattern, NM):
            groups = groups_of(problem.weight, pattern.m).to(best.device)
            return removal_in_groups(damped, best, allowed, groups, pattern.n, room).view_as(problem.mask)
        order, costs = removal_order(damped, best, allowed, room)
        return cheapest_removals(order, costs, removed_count(problem)).view_as(problem.mask)
