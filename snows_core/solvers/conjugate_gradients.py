"""Preconditioned conjugate gradients for a Newton method: stops of its own, one transfer from the device a product.

It works on tensors of any one shape and needs only a product with the matrix; it returns its solution, why it stopped
(an enum whose value is the sentence a user reads) and what it spent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.distributed import current


class StopReason(Enum):
    """Why a solver ended."""

    RESIDUAL = "the residual fell below its tolerance"
    PROGRESS = "the quadratic model gained too little per iteration"
    EXACT = "the system was solved exactly"
    NEGATIVE_CURVATURE = "a direction of negative (or zero) curvature was met"
    ITERATIONS = "the cap on iterations was reached"
    NOT_FINITE = "a gradient or product was not finite"
    NO_DESCENT = "no step along the direction lowered the loss enough; the old weights stay"
    LOSS = "the loss gained less than its tolerance"
    MODEL = "the loss fell as the quadratic model foretold; another step would gain less than the tolerance"
    STEPS = "the Newton steps asked for were taken"
    ZERO_GRADIENT = "the gradient is zero"


@dataclass(frozen=True)
class CGSolution:
    """What conjugate gradients found.

    Attributes:
        x: approximate solution of ``H x = b``.
        stop: why it ended.
        iterations: how many products with H it took.
        residual: norm of ``b - H x``.
        model: value of the quadratic model ``x'Hx / 2 - b'x`` after each iteration (never rising).
    """

    x: Tensor
    stop: StopReason
    iterations: int
    residual: float
    model: list[float] = field(repr=False)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two tensors as a scalar tensor, summed in double precision where there is any."""
    return (a * b).sum(dtype=widest(a.device))


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    max_iterations: int = 500,
    relative: float = 0.0,
    absolute: float = 0.0,
    progress: float = 0.0,
    window: int = 10,
) -> CGSolution:
    """Solve ``H x = b`` for symmetric H by preconditioned conjugate gradients, started at zero.

    This is algorithm 5.3 of Nocedal & Wright 2006, and equals ``scipy.sparse.linalg.cg`` on a positive definite H, with
    two differences that a Newton method needs. It ends with the iterate at hand when a direction of non-positive
    curvature appears, and with ``b`` itself where that is the first (Nocedal & Wright 2006, algorithm 7.1). It can end
    on relative progress of the quadratic model, which does not depend on the scale of b (Martens 2010, section 4.4).

    Args:
        product: maps v to H v.
        b: right-hand side, any shape.
        precondition: maps r to M^-1 r with M symmetric positive definite; default identity.
        max_iterations: cap on products.
        relative: end when ``|r| <= relative * |b|``.
        absolute: end when ``|r| <= absolute``.
        progress: Martens' epsilon; 0 switches that test off.
        window: smallest lag of that test.

    Returns:
        Solution, stop reason and statistics.

    >>> solution = conjugate_gradients(lambda v: torch.tensor([2.0, 4.0]) * v, torch.tensor([2.0, 4.0]), relative=1e-6)
    >>> [round(value, 4) for value in solution.x.tolist()], solution.iterations
    ([1.0, 1.0], 2)
    """
    x, r = torch.zeros_like(b), b
    z = precondition(r) if precondition else r
    p, rz = z, dot(r, z)
    gain, residual, size = _read(rz, r.norm(), b.norm())
    target = max(relative * size, absolute)
    model = [0.0]
    if not gain > 0:
        return CGSolution(x, StopReason.EXACT if gain == 0 else StopReason.NOT_FINITE, 0, residual, model)
    stop = StopReason.ITERATIONS
    for i in range(1, max_iterations + 1):
        hp = product(p)
        curved = dot(p, hp)
        alpha = rz / curved
        next_r = r - alpha * hp
        z = precondition(next_r) if precondition else next_r
        next_rz = dot(next_r, z)
        curvature, next_gain, next_residual = _read(curved, next_rz, next_r.norm())
        if curvature != curvature or abs(curvature) == float("inf"):
            stop = StopReason.NOT_FINITE
            break
        if curvature <= 0:
            stop = StopReason.NEGATIVE_CURVATURE
            x = b.clone() if i == 1 else x
            break
        x, r, residual = x + alpha * p, next_r, next_residual
        model.append(model[-1] - 0.5 * gain * gain / curvature)
        if residual <= target:
            stop = StopReason.RESIDUAL
            break
        if progress and _stalls(model, progress, window):
            stop = StopReason.PROGRESS
            break
        if not next_gain > 0:
            stop = StopReason.EXACT
            break
        p, rz, gain = z + (next_rz / rz) * p, next_rz, next_gain
    return CGSolution(x, stop, i, residual, model)


def _stalls(model: list[float], progress: float, window: int) -> bool:
    """Tell whether the quadratic model q gains too little an iteration (Martens 2010, section 4.4).

    Returns:
        True after i iterations, with lag ``w = max(window, i / 10)``, when ``(q_i - q_{i-w}) / q_i < w * progress``.
    """
    i = len(model) - 1
    lag = max(window, i // 10)
    return i >= lag and (model[i] - model[i - lag]) / model[i] < lag * progress


def _read(*scalars: Tensor) -> list[float]:
    """Bring numbers to the host in one transfer: the only wait for the device in an iteration."""
    return current().agreed(torch.stack([scalar.to(scalars[0].dtype) for scalar in scalars]).tolist())
