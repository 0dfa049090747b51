"""OBD, Optimal Brain Damage: what the network's loss rises by when one weight is taken away and no other one moves.

``s_j = w_j^2 H_jj / 2`` (LeCun, Denker and Solla 1989, "Optimal Brain Damage", section 2: the saliency of a parameter
is ``h_kk u_k^2 / 2``), with their Levenberg-Marquardt approximation, which drops second derivatives of activations and
so takes the Gauss-Newton matrix for the Hessian. The loss is the cross-entropy, whose Gauss-Newton matrix needs no
labels (:mod:`snows_core.loss.gauss_newton_diagonal`). Kept weights stay as they are.
"""

from __future__ import annotations

from torch import Tensor

from snows_core.loss.gauss_newton_diagonal import gauss_newton_diagonal
from snows_core.masks.patterns import Masks
from snows_core.methods.network_method import NetworkMethod
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import Origin


class OptimalBrainDamage(NetworkMethod):
    """Keep the weights of largest saliency."""

    origin = Origin(
        paper="LeCun, Denker & Solla: Optimal Brain Damage",
        year=1989,
        needs="images",
        cost="2 o f + f + 3 o n p (passes); a pass back for each logit and image, no matrix",
        limits="no pair of weights is looked at; gives no weights",
    )

    updates_weights = False
    reads_labels = False
    chooses_units = True

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of the saliencies of a ``problem``."""
        return problem.masks(self.saliencies(problem))

    def saliencies(self, problem: NetworkProblem) -> Tensor:
        """Return the saliency of every weight of a ``problem``, (p,)."""
        found = gauss_newton_diagonal(problem.network, problem.parameters, problem.images, problem.generator)
        diagonal = problem.vector({layer: found[name] for layer, name in problem.names.items()})
        return problem.vector(problem.weights).square() * diagonal / 2
