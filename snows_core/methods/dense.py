"""No change at all: layers behind see the dense network's values, for masks that are chosen before any re-fit."""

from __future__ import annotations

from snows_core.methods.base import LayerMethod, LayerSolution, LayerStatistics
from snows_core.methods.between import UNMEASURED
from snows_core.methods.problem import LayerProblem


class KeepDense(LayerMethod):
    """Keep the dense weights, beside the mask that another method has chosen.

    Args:
        recipe: its batch size is used.
        k: of no effect on the weights.
    """

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the dense weight of a ``problem``, and its mask."""
        statistics = LayerStatistics(problem.segments[-1].k, UNMEASURED, UNMEASURED, UNMEASURED)
        return LayerSolution(problem.weight, problem.mask, statistics)
