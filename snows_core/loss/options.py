"""How a K-step loss is weighed and computed: settings that travel as one."""

from __future__ import annotations

from dataclasses import dataclass

from snows_core.settings import Curvature, Precision, TapRule


@dataclass(frozen=True)
class LossOptions:
    """Settings of a :class:`~snows_core.loss.reconstruction.ReconstructionLoss`.

    Attributes:
        curvature: "hessian" (exact) or "gauss-newton" (positive semi-definite); equal in a ReLU network in eval mode.
        normalise: divide c_k by the variance of that tap's targets, so that every tap starts from the same scale.
        precision: of the curvature products; losses and gradients always have that of the weights.
        tap_rule: which operations were counted for the segment, and where a tap with a batch norm is observed, see
            :class:`~snows_core.loss.folded_segment.FoldedSegment`.
        retain: how many batches keep their graph for all products (fast); the others rebuild it in each (little
            memory). True is all, False none.
    """

    curvature: Curvature = "hessian"
    normalise: bool = False
    precision: Precision = "float32"
    tap_rule: TapRule = "all"
    retain: bool | int = True

    def retained(self, batches: int) -> int:
        """Return ``retain`` as a number, for a loss of so many batches."""
        return batches if self.retain is True else int(self.retain)
