"""M-FAC: Optimal Brain Surgeon with the empirical Fisher of all weights together, by products alone.

Frantar, Kurtic and Alistarh 2021, "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information": the
static algorithm (:mod:`snows_core.solvers.matrix_free_fisher`), which gives the whole inverse that WoodFisher cuts into
blocks.
"""

from __future__ import annotations

from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import GRADIENTS, Origin
from snows_core.methods.surgeon import Inverse, Surgeon
from snows_core.solvers.matrix_free_fisher import MatrixFreeInverse


class MatrixFree(Surgeon):
    """Choose and update by products with the inverse of the empirical Fisher."""

    origin = Origin(
        paper="Frantar, Kurtic & Alistarh: M-FAC, Efficient Matrix-Free Approximations of Second-Order Information",
        year=2021,
        needs="gradients of the loss",
        cost=f"{GRADIENTS} + n^2 p (passes)",
        limits="holds n gradients of all weights; moves of joint removals are added up",
    )

    def inverse(self, problem: NetworkProblem) -> Inverse:
        """Return the inverse of the whole Fisher of a ``problem``."""
        return MatrixFreeInverse(problem.gradients, problem.damping)
