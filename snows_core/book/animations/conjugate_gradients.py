"""Conjugate gradients, twice: beside steepest descent in two dimensions, and as polynomials on a spectrum.

After ``i`` steps from zero the residual is ``r_i = pi_i(H) r_0``: a polynomial of degree i with ``pi_i(0) = 1``, whose
zeros are the Ritz values, the eigenvalues of H seen from the Krylov space. An eigenvector with eigenvalue lambda is
solved for as far as ``pi_i(lambda)`` is near zero (Nocedal & Wright 2006, section 5.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from snows_core.book.animations.encode import BLUE, ORANGE, Animation
from snows_core.solvers import conjugate_gradients

STEPS = 8
KEYS = (1, 2, 3, 5, 7, 0)
"""Frames of the strip: 0, 1, 2, 4 and 6 steps, and the last state, which comes first."""


@dataclass(frozen=True)
class Runs:
    """What is shown, in double precision.

    Attributes:
        matrix: Hessian (2, 2) of the plane, and ``gradient`` (2,) at its start, zero.
        gradient: see there.
        descent: steepest descent with exact steps, (STEPS + 1, 2).
        conjugate: conjugate gradients, (3, 2); the last is the minimiser.
        eigenvalues: of the larger problem, (n,), ascending.
        weights: squared share of its right-hand side in each eigenvector, (n,).
        ritz: Ritz values after each number of steps.
        residuals: its residuals after each number of steps in the basis of eigenvectors, (STEPS + 1, n).
        errors: what is left of the error there, as a share in the norm of H, (STEPS + 1,).
    """

    matrix: Tensor
    gradient: Tensor
    descent: Tensor
    conjugate: Tensor
    eigenvalues: Tensor
    weights: Tensor
    ritz: list[Tensor]
    residuals: Tensor
    errors: Tensor

    def polynomial(self, steps: int, at: Tensor) -> Tensor:
        """Return ``pi_steps`` at some numbers: the product of ``1 - at / ritz`` over the Ritz values."""
        values = self.ritz[steps]
        return (1 - at[:, None] / values).prod(1) if len(values) else torch.ones_like(at)


def compute(seed: int = 0, size: int = 60) -> Runs:
    """Solve both problems, the larger one with ``size`` unknowns, most of its spectrum in a bulk and three above."""
    angle = math.radians(35)
    axes = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    matrix = axes @ torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64)) @ axes.T
    gradient = -matrix @ (axes @ torch.tensor([3.2, 0.42], dtype=torch.float64))
    points = [torch.zeros(2, dtype=torch.float64)]
    for _ in range(STEPS):
        slope = gradient + matrix @ points[-1]
        points.append(points[-1] - (slope @ slope) / (slope @ matrix @ slope) * slope)
    conjugate = [_after(i, matrix, -gradient) for i in range(3)]

    generator = torch.Generator().manual_seed(seed)
    bulk = 0.3 + 2.7 * torch.rand(size - 3, generator=generator, dtype=torch.float64)
    eigenvalues = torch.cat([bulk, torch.tensor([5.6, 7.7, 9.6], dtype=torch.float64)]).sort().values
    right = torch.randn(size, generator=generator, dtype=torch.float64)
    found = [_after(i, torch.diag(eigenvalues), right) for i in range(STEPS + 1)]
    residuals = torch.stack([right - eigenvalues * x for x in found])
    basis = (residuals / residuals.norm(dim=1, keepdim=True)).T  # residuals are orthogonal, and span the Krylov space
    ritz = [
        torch.linalg.eigvalsh(basis[:, :i].T @ (eigenvalues[:, None] * basis[:, :i])) if i else eigenvalues[:0]
        for i in range(STEPS + 1)
    ]
    errors = (residuals.square() / eigenvalues).sum(1).sqrt()
    return Runs(
        matrix,
        gradient,
        torch.stack(points),
        torch.stack(conjugate),
        eigenvalues,
        right.square() / right.square().sum(),
        ritz,
        residuals,
        errors / errors[0],
    )


def _after(steps: int, matrix: Tensor, right: Tensor) -> Tensor:
    """Return what conjugate gradients have found after some steps from zero."""
    return conjugate_gradients(matrix.matmul, right, max_iterations=steps).x if steps else torch.zeros_like(right)


def animate(runs: Runs) -> Animation:
    """Draw one frame for each number of steps, the last one first."""
    order = [STEPS, *range(STEPS)]
    return Animation([_frame(runs, i) for i in order], [3.0, *[1.2] * STEPS], KEYS)


def _frame(runs: Runs, steps: int) -> Figure:
    figure = Figure(figsize=(6.2, 3.2))
    _plane(figure.add_axes((0.025, 0.18, 0.43, 0.67)), runs, steps)
    _spectrum(figure.add_axes((0.565, 0.17, 0.42, 0.67)), runs, steps)
    figure.text(0.5, 0.95, f"{steps} step{'s' * (steps != 1)}", ha="center", va="center", size=12, weight="bold")
    return figure


def _plane(ax: Axes, runs: Runs, steps: int) -> None:
    """Draw the ellipses of the quadratic with both paths."""
    end = runs.conjugate[-1]
    across, up = torch.meshgrid(
        torch.linspace(-0.6, 4.2, 121, dtype=torch.float64),
        torch.linspace(-0.5, 3.2, 121, dtype=torch.float64),
        indexing="xy",
    )
    away = torch.stack([across, up], -1) - end
    heights = 0.5 * (away @ runs.matrix * away).sum(-1)
    levels = [0.5 * rise**2 for rise in (0.45, 0.9, 1.5, 2.2, 3.0, 4.0)]
    ax.contour(across, up, heights, levels=levels, colors="#c9c9c9", linewidths=0.9)
    for path, count, colour, marker, name in (
        (runs.descent, steps, ORANGE, "s", "steepest descent"),
        (runs.conjugate, min(steps, 2), BLUE, "o", "conjugate gradients"),
    ):
        shown = path[: count + 1]
        ax.plot(shown[:, 0], shown[:, 1], marker=marker, color=colour, lw=2, ms=5, label=name)
    ax.plot(*end, marker="*", color="black", ms=11, ls="", zorder=1)
    ax.set(xticks=[], yticks=[], aspect="equal", title="two unknowns")
    ax.spines[:].set_visible(False)
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.53, 0.01),
        ncols=2,
        fontsize=9,
        columnspacing=0.8,
        handlelength=1.4,
        handletextpad=0.3,
    )


def _spectrum(ax: Axes, runs: Runs, steps: int) -> None:
    """Draw the residual polynomial with the eigenvalues on it and its zeros below."""
    line = torch.linspace(0, 10.4, 400, dtype=torch.float64)
    ax.axhline(0, color="#c9c9c9", lw=1)
    ax.plot(line, runs.polynomial(steps, line).clamp(-1.6, 1.6), color=BLUE, lw=1.6)
    left = runs.polynomial(steps, runs.eigenvalues)
    ax.scatter(runs.eigenvalues, left.clamp(-1.35, 1.35), s=9 + 160 * runs.weights, color="#333333", lw=0, zorder=3)
    ritz = runs.ritz[steps]
    ax.plot(ritz, torch.full_like(ritz, -1.2), ls="", marker="^", color=ORANGE, ms=7, clip_on=False)
    ax.set(xlim=(0, 10.4), ylim=(-1.4, 1.4), yticks=[-1, 0, 1])
    ax.set_title(f"{len(runs.eigenvalues)} unknowns: error left {100 * float(runs.errors[steps]):.1f} %")
    ax.set_ylabel(r"residual polynomial $\pi_i(\lambda)$")
    ax.set_xlabel(r"eigenvalue $\lambda$  (triangles: Ritz values)")
