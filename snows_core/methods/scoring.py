"""Scores of a layer's weights from calibration images; a sweep that notes them leaves every weight as it is.

"curvature": ``w_j^2 H_jj`` with the diagonal of the Gauss-Newton matrix of the layer's own K-step loss at its current
weight, estimated by random signs: what the loss rises by when a weight is taken away and no other one moves (Optimal
Brain Damage, LeCun et al. 1989, with the K-step loss in place of the network's).

"obs": ``s_i w_j^2 / [A_SS^-1]_jj``, what it rises by when the others of the row are re-fitted, in layer-wise least
squares (:mod:`snows_core.solvers.removal`) with each output row i weighed by its curvature ``s_i`` in the K-step loss,
as in the preconditioner: ``H ~ s_i A``. At K = 0 that is the layer's own loss without approximation. A weight that was
taken away before has the value that it would have if it came back.

Both are in units of the K-step loss of the images that were read, a mean, so that layers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from snows_core.activations.cache import whole_batches
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods.base import LayerSolution, LayerStatistics, Needs
from snows_core.methods.between import UNMEASURED
from snows_core.methods.problem import LayerProblem
from snows_core.methods.sampled import SampledMethod
from snows_core.network.graph import Layer, Network, Segment
from snows_core.settings import K, Recipe
from snows_core.solvers.least_squares import residual
from snows_core.solvers.removal import least_squares_values
from snows_core.solvers.row_factors import RowFactors


class Scoring(SampledMethod):
    """Note the scores of a layer's current weight.

    Args:
        recipe: its ridge, batch size and loss are used.
        k: operations behind a layer that the K-step loss sees; of "auto" the longest that may be chosen.
        term: "curvature" or "obs".

    Attributes:
        scores: layer name to scores of the weight's shape, of the layers seen so far.
    """

    def __init__(self, recipe: Recipe, k: K, term: str) -> None:
        super().__init__(recipe, k)
        self.term = term
        self.scores: dict[str, Tensor] = {}

    @property
    def needs(self) -> Needs:
        """Row factors for "obs", beside what every method needs."""
        return replace(super().needs, row_factors=self.term == "obs")

    def segments(self, network: Network, layer: Layer) -> tuple[Segment, ...]:
        """Return the longest segment alone.

        Args:
            network: the traced network.
            layer: the layer that is to be scored.
        """
        return super().segments(network, layer)[-1:]

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Note the scores of the current weight of a ``problem``, and return that weight."""
        self.scores[problem.name] = SCORE_TERMS[self.term](self, problem)
        statistics = LayerStatistics(problem.segments[-1].k, UNMEASURED, UNMEASURED, UNMEASURED)
        return LayerSolution(problem.current, problem.mask, statistics)


def _curvature(method: Scoring, problem: LayerProblem) -> Tensor:
    loss = _loss(method, problem)
    return problem.current.square() * loss.diagonal(problem.current, problem.generator)


def _obs(method: Scoring, problem: LayerProblem) -> Tensor:
    images = method.gram_images(problem.mask, problem.positions, problem.images)
    rows = problem.current.flatten(1)  # (out, d)
    if bool(problem.mask.all()):  # one factor serves all rows of a group
        gram, _ = problem.normal_equations(images)
        factors = RowFactors(gram, problem.mask.flatten(1)[: len(gram)], method.recipe.ridge)
        values = least_squares_values(factors, rows)
    else:
        factors = problem.row_factors(method.recipe.ridge, images, whole=True)
        _, response = problem.normal_equations(images)
        left = residual(factors, rows, problem.weight.flatten(1), response)
        values = least_squares_values(factors, rows, left)
    scale = _loss(method, problem).row_curvature(problem.current, problem.generator)  # (out,)
    return (values * scale[:, None]).view_as(problem.weight)


def _loss(method: Scoring, problem: LayerProblem) -> ReconstructionLoss:
    images = method.gram_images(problem.mask, problem.positions, problem.images)
    batches = whole_batches(problem.sizes, images)
    return problem.reconstruction(problem.segments[-1], method.needs.loss, batches)


SCORE_TERMS: Mapping[str, Callable[[Scoring, LayerProblem], Tensor]] = {"curvature": _curvature, "obs": _obs}
"""Term of a saliency to the function that scores a layer."""
