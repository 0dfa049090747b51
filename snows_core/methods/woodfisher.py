"""WoodFisher: Optimal Brain Surgeon with the empirical Fisher in blocks, inverted by one rank-one update a gradient.

Singh & Alistarh 2020, "WoodFisher: Efficient Second-Order Approximation for Neural Network Compression": the inverse by
equation 3 (:mod:`snows_core.solvers.block_fisher`), blocks within a layer, scores and update of OBS
(:mod:`snows_core.methods.surgeon`).
"""

from __future__ import annotations

from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import GRADIENTS, Origin
from snows_core.methods.surgeon import Inverse, Surgeon
from snows_core.solvers.block_fisher import BlockInverse

BLOCK = 64  # weights of a block at most


class WoodFisher(Surgeon):
    """Choose and update by the block-diagonal inverse of the empirical Fisher."""

    origin = Origin(
        paper="Singh & Alistarh: WoodFisher, Efficient Second-Order Approximation for Neural Network Compression",
        year=2020,
        needs="gradients of the loss",
        cost=f"{GRADIENTS} + 128 n p + 6,000 p (factors); in blocks of 64 weights, inverted for scores and moves",
        limits="weights of different blocks do not know of one another; moves of joint removals are added up",
    )

    def inverse(self, problem: NetworkProblem) -> Inverse:
        """Return the inverse of the blocks of a ``problem``."""
        return BlockInverse(problem.gradients, problem.sizes, problem.damping, BLOCK)
