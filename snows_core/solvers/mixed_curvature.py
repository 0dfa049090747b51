r"""A matrix whose scale is not that of a curvature, made fit for Newton steps by mixing it with one whose scale is.

.. math::  B_s = s \tau E + (1 - s) M, \qquad \tau = \frac{u^T M u}{u^T E u}, \quad u = M^{-1} g

With ``E`` an empirical Fisher and M the matrix of a preconditioner, tau puts E on the scale of M along the
preconditioned gradient u. So ``s = 0`` is the preconditioned gradient method, and what E adds grows with s (notebook 06
compares shares). E alone is often singular, and its steps would have no scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from snows_core.solvers.conjugate_gradients import dot
from snows_core.solvers.newton_cg import Linearisation, Objective


@dataclass(frozen=True)
class MixedCurvature:
    """An objective whose products are with B_s; loss and gradient stay what they are.

    Attributes:
        objective: its products are those with E.
        times: maps a direction to M times direction.
        solve: maps a gradient to ``M^-1`` times gradient.
        share: s, from 0 to below 1.
    """

    objective: Objective
    times: Callable[[Tensor], Tensor]
    solve: Callable[[Tensor], Tensor]
    share: float

    @property
    def images(self) -> int:
        """How many images the loss is over."""
        return self.objective.images

    def value(self, weight: Tensor) -> float:
        """Return the loss at a ``weight``."""
        return self.objective.value(weight)

    def linearise(self, weight: Tensor, curvature_images: int | None = None) -> Linearisation:
        """Return loss, gradient and products with B_s at a weight; tau takes one product with E.

        Args:
            weight: where.
            curvature_images: how many of the images E is taken from; None for all.
        """
        at = self.objective.linearise(weight, curvature_images)
        u = self.solve(at.gradient)
        along, of_fisher = float(dot(u, at.gradient)), float(dot(u, at.product(u)))
        tau = along / of_fisher if of_fisher > 0 else 0.0

        def product(direction: Tensor) -> Tensor:
            return self.share * tau * at.product(direction) + (1 - self.share) * self.times(direction)

        return replace(at, product=product)
