"""No re-fit: the dense weights stay as they are where the mask keeps them. What every update is compared with."""

from __future__ import annotations

from snows_core.methods.base import LayerMethod, LayerSolution
from snows_core.methods.origin import Origin
from snows_core.methods.problem import LayerProblem


class Unchanged(LayerMethod):
    """Keep the dense weights on the mask."""

    origin = Origin(
        paper="Han, Pool, Tran & Dally: Learning both Weights and Connections for Efficient Neural Networks "
        "(without its retraining)",
        year=2015,
        needs="nothing",
        cost="3 o d (passes)",
        limits="what every update is compared with",
    )

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Return the masked dense weight."""
        return self.solution(problem, problem.masked, problem.mask, "the kept weights stay as they were")
