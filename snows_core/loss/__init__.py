"""The K-step reconstruction loss, its gradient, and exact products with its curvature."""

from snows_core.loss.folded_segment import FoldedSegment
from snows_core.loss.joint import JointLoss
from snows_core.loss.reconstruction import Linearisation, ReconstructionLoss

__all__ = [
    "FoldedSegment",
    "JointLoss",
    "Linearisation",
    "ReconstructionLoss",
]
