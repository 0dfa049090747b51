"""How good a single direction is: the decrease that the quadratic model promises along it, as a share of Newton's.

Along d, with the best step length, the model promises ``(g'd)^2 / (2 d'Hd)``; no direction promises more than Newton's
``g'H^-1 g / 2``. So the quotient is a number from 0 to 1, and it compares directions before any of them is walked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from snows_core.book.contests.fits import LayerFit, image_gradients
from snows_core.solvers import conjugate_gradients

Solve = Callable[[Tensor], Tensor]


def mixed_direction(rows: Tensor, gradient: Tensor, solve: Solve, share: float) -> Tensor:
    """Return ``-B^-1 g`` for ``B = share omega E + (1 - share) M`` with the empirical Fisher E, exactly.

    By the Woodbury identity it takes one system with as many unknowns as there are images; omega puts E on the scale of
    M along ``M^-1 g``, as in :mod:`snows_core.solvers.mixed_curvature`.

    Args:
        rows: (N, n) the gradients of the images; E is ``rows' rows / N``.
        gradient: (n,) g.
        solve: maps a vector (n,) to ``M^-1`` times it.
        share: from 0 to below 1.

    Returns:
        The direction, (n,).
    """
    plain = solve(gradient)
    if share == 0:
        return -plain
    along = rows @ plain  # (N,)
    omega = (plain @ gradient) / (along @ along / len(rows))
    solved = torch.stack([solve(row) for row in rows])  # (N, n)
    inner = rows @ solved.T
    inner.diagonal().add_((1 - share) * len(rows) / (share * omega))
    return -(plain - solved.T @ torch.linalg.solve(inner, along)) / (1 - share)


def direction_quality(fit: LayerFit, shares: Sequence[float]) -> pd.DataFrame:
    """Return what single directions from a layer's start promise, as shares of Newton's decrease.

    Args:
        fit: the layer.
        shares: of the empirical Fisher in its mixtures with M and with a multiple of the identity.

    Returns:
        One row a direction: layer, direction ("gradient", "signs of the gradient", "preconditioned gradient", "Fisher
        with M", "Fisher with I"), share (NaN where there is none) and promised.
    """
    at = fit.loss.linearise(fit.start)
    newton = conjugate_gradients(
        at.product, -at.gradient, precondition=fit.solve, max_iterations=40, progress=1e-4
    ).model[-1]
    g, rows = at.gradient.flatten(), image_gradients(fit.loss, fit.start)

    def with_m(vector: Tensor) -> Tensor:
        return fit.solve(vector.view_as(fit.start)).flatten()

    def promised(direction: Tensor) -> float:
        d = direction.view_as(at.gradient)
        return float((at.gradient * d).sum() ** 2 / (2 * (d * at.product(d)).sum()) / -newton)

    found: list[tuple[str, float | None, Tensor]] = [("gradient", None, g), ("signs of the gradient", None, g.sign())]
    found.append(("preconditioned gradient", None, with_m(g)))
    for name, solve in (("Fisher with M", with_m), ("Fisher with I", lambda vector: vector)):
        found += [(name, share, mixed_direction(rows, g, solve, share)) for share in shares]
    return pd.DataFrame(
        [{"layer": fit.name, "direction": name, "share": share, "promised": promised(d)} for name, share, d in found]
    )
