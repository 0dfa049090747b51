"""What becomes of a layer in whose solve numbers overflow: the run goes on, and the report says so."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from snows_core.errors import OverflowedError
from snows_core.methods.base import LayerMethod, LayerSolution, LayerStatistics
from snows_core.methods.layerwise import least_squares
from snows_core.methods.problem import LayerProblem

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined] # public, and not exported
LEAST_SQUARES = "numbers overflowed in its solve; its least-squares weights stay"
CHOICE = "numbers overflowed where its mask was chosen; it is chosen by magnitude instead"
MASKED = "numbers overflowed in its solve; its masked dense weights stay"


def solve_layer(method: LayerMethod, problem: LayerProblem) -> LayerSolution:
    """Solve a layer by a method; where numbers overflow, fall back to what can still be computed.

    Args:
        method: any.
        problem: the layer; its mask before the sweep is what stays where the method could not choose one.

    Returns:
        The method's solution, or with a warning the least-squares weights on its mask; where these are not finite or no
        better either, the masked dense weights.
    """
    mask = problem.mask if problem.pattern is None or problem.before.mask is None else problem.before.mask
    try:
        done = method.solve(problem)
    except (OverflowedError, LinAlgError):
        return fall_back(method, problem, mask)
    finite = bool(torch.isfinite(done.weight).all()) and not math.isinf(done.statistics.loss_end)
    return done if finite else fall_back(method, problem, done.mask)


def choose_mask(method: LayerMethod, problem: LayerProblem) -> Tensor:
    """Return the mask that a method chooses, or with a warning that of before the sweep where numbers overflow."""
    try:
        return method.choose(problem)
    except (OverflowedError, LinAlgError):
        if problem.before.mask is None:
            raise
        warnings.warn(f"layer '{problem.name}': {CHOICE}", stacklevel=2)
        return problem.before.mask


def fall_back(method: LayerMethod, problem: LayerProblem, mask: Tensor) -> LayerSolution:
    """Return the least-squares weights of a layer on a mask, or its masked dense weights, with a warning."""
    problem.pattern = None
    masked = torch.where(mask, problem.weight, 0.0)
    segment = problem.segments[-1]
    loss = problem.reconstruction(segment, method.needs.loss, len(problem.sizes))
    before = loss.value(masked)
    statistics = LayerStatistics(segment.k, before, before, before, stop=MASKED)
    found = LayerSolution(masked, mask, statistics)
    try:
        _, solved = least_squares(problem, method.recipe.ridge, mask=mask)
        solved = torch.where(mask, solved, 0.0).to(masked.dtype)
        after = loss.value(solved) if bool(torch.isfinite(solved).all()) else math.inf
        if after < before or (math.isfinite(after) and not math.isfinite(before)):
            found = LayerSolution(solved, mask, replace(statistics, loss_end=after, stop=LEAST_SQUARES))
    except LinAlgError:
        pass
    warnings.warn(f"layer '{problem.name}': {found.statistics.stop}", stacklevel=2)
    return found
