"""The K-step reconstruction loss, its gradient, and exact products with its curvature."""

from snows_core.loss.batch_loss import BatchLoss
from snows_core.loss.folded_segment import FoldedSegment
from snows_core.loss.intervals import wilson
from snows_core.loss.joint import JointLoss
from snows_core.loss.options import LossOptions
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.solvers.newton_cg import Linearisation

__all__ = [
    "BatchLoss",
    "FoldedSegment",
    "JointLoss",
    "Linearisation",
    "LossOptions",
    "ReconstructionLoss",
    "wilson",
]
