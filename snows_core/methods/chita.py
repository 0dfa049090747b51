"""CHITA: all layers pruned at once by l0-regularised regression on gradients.

Benbaki et al. 2023, "Fast as CHITA: Neural Network Pruning with Combinatorial Optimization": the quadratic of the
network's loss with the empirical Fisher is a regression of ``A w`` on ``A w0`` with one gradient a row
(:mod:`snows_core.solvers.l0_regression`, which says what of their algorithm is there). The first-order term of their
objective is left out: for drawn labels it has mean zero at the dense weights. So is coordinate descent after hard
thresholding. Their CHITA++ takes a regression a stage, with gradients at the weights that the stage before left:
``mask="chita", update="chita", stages=5``; with ``update="snows"`` the weights between stages are those of least
squares, or of K-step steps with ``stage_k``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.masks.patterns import Masks
from snows_core.methods.network_method import NetworkMethod, NetworkSolution
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import GRADIENTS, Origin
from snows_core.solvers.l0_regression import Project, Regression, l0_regression

WHOLE = 2**24  # weights up to which the network is one block; of more, each layer is one


class Chita(NetworkMethod):
    """Choose and re-fit all weights by sparse regression."""

    origin = Origin(
        paper="Benbaki et al.: Fast as CHITA, Neural Network Pruning with Combinatorial Optimization",
        year=2023,
        needs="gradients of the loss",
        cost=f"{GRADIENTS} + 3 n^2 p + 80 n p (passes) + 1,500 p (passes); for 40 steps",
        limits="with far fewer gradients than weights its mask is nearly that of magnitude; one stage fails at high "
        "sparsity, stages=5 is CHITA++",
    )

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of the support of a ``problem``."""
        return self.solve(problem).masks

    def projection(self, problem: NetworkProblem) -> Project:
        """Return what keeps as many scores as the pattern of a ``problem`` allows."""
        return lambda scores: problem.vector(problem.masks(scores))

    def update(self, problem: NetworkProblem, masks: Masks) -> dict[str, Tensor]:
        """Return the ridge regression on masks.

        Args:
            problem: the network.
            masks: layer name to mask.
        """
        return problem.by_layer(regression_of(problem).back_solve(problem.vector(masks)))

    def solve(self, problem: NetworkProblem) -> NetworkSolution:
        """Choose a support of a ``problem``, and return the ridge regression on it."""
        regression = regression_of(problem)
        found = l0_regression(regression, self.projection(problem))
        masks = {layer: mask.bool() for layer, mask in problem.by_layer(found.support).items()}
        return NetworkSolution(masks, problem.by_layer(regression.back_solve(found.support)))


def regression_of(problem: NetworkProblem) -> Regression:
    """Return the regression of a ``problem``, in one block or a block a layer."""
    gradients, blocks = problem.gradients, [problem.gradients]
    if gradients.shape[1] > WHOLE:
        blocks = list(torch.split(gradients, problem.sizes, dim=1))
    return Regression.of(blocks, problem.vector(problem.weights), problem.damping)
