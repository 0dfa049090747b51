"""Armijo backtracking: how far to go along a direction, and never keep a step that was not accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LineSearch:
    """What backtracking found.

    Attributes:
        step: the step length t, or 0 when none was accepted.
        loss: the loss at that step.
        evaluations: how often the loss was evaluated.
    """

    step: float
    loss: float
    evaluations: int


def armijo(
    value: Callable[[Tensor], float],
    w: Tensor,
    direction: Tensor,
    loss: float,
    slope: float,
    *,
    c: float = 1e-5,
    shrink: float = 0.9,
    max_backtracks: int = 50,
) -> LineSearch:
    """Backtrack from a full step until ``L(w + t d) <= L(w) + c t g'd``.

    This is Armijo's condition of sufficient decrease (Armijo 1966) with backtracking as in Nocedal & Wright 2006,
    algorithm 3.1. Loss, slope and trial values must belong to the same images, else the test means nothing.

    Args:
        value: the loss as a function of the weight.
        w: current weight.
        direction: step to try, same shape.
        loss: ``value(w)``.
        slope: directional derivative g'd at w, negative for a descent direction.
        c: fraction of the predicted decrease that is asked for.
        shrink: factor between trials, in (0, 1).
        max_backtracks: how many times to shrink.

    Returns:
        The accepted step; step 0 with the old loss when there is none.
    """
    if not slope < 0:
        return LineSearch(0.0, loss, 0)
    step = 1.0
    for trial in range(1, max_backtracks + 2):
        there = value(w + step * direction)
        if there <= loss + c * step * slope:  # False for a NaN
            return LineSearch(step, there, trial)
        step *= shrink
    return LineSearch(0.0, loss, max_backtracks + 1)
