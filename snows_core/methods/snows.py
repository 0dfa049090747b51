"""SNOWS: the kept weights of a layer re-fitted on the K-step loss, by Newton steps with exact curvature products.

Lucas & Mazumder (ICLR 2025), section 3. The recipe says how: where Newton starts, what preconditions it, on how many
images, and whether each step sees all of them ("fast") or one mini-batch ("paper").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from snows_core.activations.cache import whole_batches
from snows_core.loss.options import LossOptions
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods.base import LayerMethod, LayerSolution, LayerStatistics, Needs
from snows_core.methods.choose_k import choose_segment
from snows_core.methods.enough import Enough, enough_for
from snows_core.methods.fallback import fall_back
from snows_core.methods.layerwise import CLOSED_FORM, least_squares
from snows_core.methods.origin import LEAST_SQUARES, NORMAL_EQUATIONS, Origin
from snows_core.methods.problem import LayerProblem
from snows_core.network.graph import Segment
from snows_core.settings import NewtonOptions
from snows_core.solvers.newton_cg import NewtonSolution, newton
from snows_core.solvers.row_factors import RowFactors

# The published schedule ends where this many losses in turn each fell by less than this share.
STAGNANT, SHARE = 6, 0.005
Preconditioner = Callable[[Tensor], Tensor] | None


class Snows(LayerMethod):
    """Newton-CG on the K-step reconstruction loss of a layer."""

    origin = Origin(
        paper="Lucas & Mazumder: Preserving Deep Representations in One-Shot Pruning: A Hessian-Free Second-Order "
        "Optimization Framework",
        year=2025,
        needs="the Gram matrix, and the K operations behind the layer",
        cost=f"{NORMAL_EQUATIONS} + {LEAST_SQUARES} + 50 f; for 8 curvature products, each like two passes forward "
        "and back",
        limits="re-fits a mask, chooses none",
    )

    @property
    def needs(self) -> Needs:
        """What the recipe asks for."""
        recipe = self.recipe
        return Needs(
            recipe.targets,
            recipe.batch_size,
            recipe.mini_batches,
            bool(recipe.warm_start) or recipe.precondition,
            LossOptions(recipe.curvature, recipe.normalise, recipe.precision, recipe.tap_rule),
        )

    def closed_form(self, segment: Segment) -> bool:
        """Tell whether the start is the solution already: least squares at K = 0."""
        return segment.k == 0 and self.recipe.warm_start is True

    def gram_images(self, mask: Tensor, positions: float, count: int) -> int | None:
        """Return what is enough beside a K-step loss; least squares alone reads all images."""
        return None if self.k == 0 else enough_for(self.recipe, mask, positions, count).gram

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """Re-fit one layer on its mask; where numbers overflow, see :mod:`snows_core.methods.fallback`."""
        weight, statistics = self._solve(problem)
        if not (bool(torch.isfinite(weight).all()) and math.isfinite(statistics.loss_end)):
            return fall_back(self, problem, problem.mask)
        return LayerSolution(weight, problem.mask, statistics)

    def _solve(self, problem: LayerProblem) -> tuple[Tensor, LayerStatistics]:
        recipe, layerwise = self.recipe, problem.segments[-1].k == 0
        enough = Enough(curvature=recipe.newton.curvature_images)
        if not layerwise:
            enough = enough_for(recipe, problem.mask, problem.positions, problem.images)
        loss_of = self._losses(problem, enough)
        start = masked = problem.masked
        factors = None
        if self.needs.row_factors:
            factors, solved = least_squares(problem, recipe.ridge, enough.gram)
            start = solved if recipe.warm_start and bool(torch.isfinite(solved).all()) else masked
        if problem.before.own is not None:
            start = torch.where(problem.mask, problem.before.own, 0.0)

        def preconditioner(objective: ReconstructionLoss) -> Preconditioner:
            return applied(self._scaled(objective, factors, start, problem.generator))

        segment, *trials = choose_segment(problem.segments, loss_of, start, recipe.newton, preconditioner)
        objective = loss_of(segment)
        objective.products, objective.image_products = trials
        if problem.before.weight is not None:
            start = _better(objective, start, torch.where(problem.mask, problem.before.weight, 0.0))
        # Where the solve starts elsewhere this is a figure for the report alone: one batch tells it.
        loss_masked = objective.value(masked, None if start is masked or layerwise else 1)
        if layerwise and recipe.warm_start is True:
            loss = objective.value(start)
            return start, LayerStatistics(0, loss_masked, loss, loss, stop=CLOSED_FORM)
        if recipe.mini_batches:
            return self._by_mini_batches(problem, objective, start, loss_masked)
        options = replace(recipe.newton, curvature_images=enough.curvature)
        scaled = self._scaled(objective, factors, start, problem.generator)
        done = self.minimise(objective, start, options, scaled)
        reached = LayerStatistics(
            segment.k,
            loss_masked,
            done.losses[0],
            done.losses[-1],
            done.steps,
            objective.products,
            objective.image_products,
            self.stop(done),
        )
        return done.weight, reached

    def minimise(
        self, objective: ReconstructionLoss, start: Tensor, options: NewtonOptions, factors: RowFactors | None
    ) -> NewtonSolution:
        """Minimise the K-step loss of a layer; a rival of Newton's method differs from it here.

        Args:
            objective: the loss, which counts its products.
            start: zero off the mask.
            options: Newton, CG and line-search settings.
            factors: of the layer's input on the mask, scaled to the curvature of each row; None where nothing
                preconditions.

        Returns:
            Its loss is never above that of the start.
        """
        return newton(objective, start, options, applied(factors))

    def stop(self, done: NewtonSolution) -> str:
        """Return why what was ``done`` ended, a sentence."""
        return done.stop.value

    def _losses(self, problem: LayerProblem, enough: Enough) -> Callable[[Segment], ReconstructionLoss]:
        batches = whole_batches(problem.sizes, enough.loss)
        return lambda segment: problem.reconstruction(segment, self.needs.loss, batches)

    def _scaled(
        self, objective: ReconstructionLoss, factors: RowFactors | None, start: Tensor, generator: torch.Generator
    ) -> RowFactors | None:
        """Scale row factors to the curvature of an objective; None where the recipe wants no preconditioner."""
        if not self.recipe.precondition or factors is None:
            return None
        factors.scale = objective.row_curvature(start, generator)
        return factors

    def _by_mini_batches(
        self, problem: LayerProblem, objective: ReconstructionLoss, weight: Tensor, loss_masked: float
    ) -> tuple[Tensor, LayerStatistics]:
        """Take one Newton step on each batch in turn, several passes: the published schedule and stagnation rule."""
        history: list[float] = []
        steps, products, image_products = 0, objective.products, objective.image_products
        stop = "the passes asked for were made"
        for turn in range(self.recipe.passes * len(problem.values.groups)):
            part = objective.on(problem.values.groups[turn % len(problem.values.groups)])
            done = newton(part, weight, self.recipe.newton)
            weight, steps = done.weight, steps + done.steps
            products, image_products = products + part.products, image_products + part.image_products
            history.append(done.losses[0])
            recent = history[-STAGNANT:]
            if len(recent) == STAGNANT and all(b / a > 1 - SHARE for a, b in pairwise(recent)):
                stop = "the loss stagnated over five mini-batches"
                break
        end = objective.value(weight)
        k = objective.segment.k
        return weight, LayerStatistics(k, loss_masked, loss_masked, end, steps, products, image_products, stop)


def applied(factors: RowFactors | None) -> Preconditioner:
    """Return row factors as a preconditioner of weights in their own shape; None where there are none."""
    return None if factors is None else lambda r: factors.solve(r.flatten(1)).view_as(r)


def _better(objective: ReconstructionLoss, one: Tensor, other: Tensor) -> Tensor:
    """Return the weight of the lower loss, judged on one batch."""
    return one if objective.value(one, 1) <= objective.value(other, 1) else other
