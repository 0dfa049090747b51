r"""Least squares with a bound on how many weights there are, by iterative hard thresholding.

With gradients ``A`` (m, p) and weights ``w0``, the quadratic ``(w - w0)' (A'A / m + l I) (w - w0) / 2`` is a regression
(Benbaki et al. 2023, "Fast as CHITA", section 2)::

    min_w  ||A w - b||^2 / (2 m) + l / 2 ||w - w0||^2,   b = A w0,   at most k weights not zero

and ``A'A`` is never formed. Steps are ``P(w - t grad)`` with P keeping the k largest; a step of one over the largest
curvature never raises the objective, and a line search tries longer ones, through changes of the support. They move an
active set of weights alone, and a step on all weights tells which others ask to join. In between the support is solved
exactly (back-solve): a ridge regression, by Woodbury's identity one system of m equations. Where ``A`` is given in
blocks of columns, curvature between blocks is left out (their block approximation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from snows_core.devices import widest

ROUNDS = 20  # of steps on all weights, each followed by those on the active set and a back-solve
STEPS = 50  # on an active set
SETTLED = 3  # steps without a change of the support, which the back-solve finishes
LONGEST = 2.0**20  # step, relative to the one that is safe
TRIALS = 3  # longer steps, after one that lowers the objective or changes the support, that do no better
NEGLIGIBLE = 1e-7  # relative decrease, not worth another step

Project = Callable[[Tensor], Tensor]
"""Scores (p,) that are not negative, to the support (p,) that a pattern allows: the highest stay."""


@dataclass(frozen=True)
class Regression:
    """The objective at the top of this file.

    Attributes:
        blocks: gradients (m, p_b) of each block of weights, side by side.
        anchor: w0, (p,).
        targets: b of each block, (m,).
        damping: l.
        constant: what weights that are left out add.
    """

    blocks: Sequence[Tensor]
    anchor: Tensor
    targets: Sequence[Tensor]
    damping: float
    constant: float = 0.0

    @classmethod
    def of(cls, blocks: Sequence[Tensor], weight: Tensor, damping: float) -> Regression:
        """Return the objective that is zero at a ``weight`` (p,)."""
        parts = torch.split(weight, [block.shape[1] for block in blocks])
        return cls(blocks, weight, [a @ part for a, part in zip(blocks, parts, strict=True)], damping)

    def parts(self, vector: Tensor) -> Sequence[Tensor]:
        """Return a vector (p,) in blocks."""
        return torch.split(vector, [block.shape[1] for block in self.blocks])

    def residuals(self, weight: Tensor) -> list[Tensor]:
        """Return ``A w - b`` of each block."""
        parts = zip(self.blocks, self.parts(weight), self.targets, strict=True)
        return [block @ part - target for block, part, target in parts]

    def value(self, weight: Tensor) -> float:
        """Return the objective at a weight (p,)."""
        precise = widest(weight.device)
        squares = sum(float(left.to(precise).square().sum()) for left in self.residuals(weight))
        ridge = float((weight - self.anchor).to(precise).square().sum())
        return squares / (2 * len(self.blocks[0])) + self.damping / 2 * ridge + self.constant

    def gradient(self, weight: Tensor) -> Tensor:
        """Return the gradient (p,) at a weight."""
        pulls = [block.mT @ left for block, left in zip(self.blocks, self.residuals(weight), strict=True)]
        return torch.cat(pulls) / len(self.blocks[0]) + self.damping * (weight - self.anchor)

    def safe_step(self) -> float:
        """Return one over the largest curvature."""
        grams = [(block @ block.mT).to(widest(block.device)) for block in self.blocks]
        largest = max(float(torch.linalg.eigvalsh(gram)[-1]) for gram in grams)
        return 1 / (largest / len(self.blocks[0]) + self.damping)

    def among(self, places: Tensor) -> Regression:
        """Return the objective of some weights, the others being zero; ``places`` (p,) tells which."""
        own = [block[:, here] for block, here in zip(self.blocks, self.parts(places), strict=True)]
        left_out = float(self.anchor[~places].to(widest(places.device)).square().sum())
        return Regression(own, self.anchor[places], self.targets, self.damping, self.damping / 2 * left_out)

    def back_solve(self, support: Tensor) -> Tensor:
        """Return the weight (p,) that minimises the objective on a ``support``: a ridge regression in each block."""
        solved = []
        for block, anchor, kept in zip(self.blocks, self.parts(self.anchor), self.parts(support), strict=True):
            own, precise = block[:, kept], widest(block.device)
            missing = (block[:, ~kept] @ anchor[~kept]).to(precise)  # what the others would add, (m,)
            gram = (own @ own.mT).to(precise)
            gram.diagonal().add_(self.damping * len(block))
            moved = own.mT @ torch.linalg.solve(gram, missing).to(own)
            solved.append(torch.zeros_like(anchor).masked_scatter(kept, anchor[kept] + moved))
        return torch.cat(solved)


@dataclass(frozen=True)
class SparseSolution:
    """Where the steps ended.

    Attributes:
        weight: (p,), zero off the support.
        support: (p,), as the pattern allows it.
        objective: after the start, and after every step and back-solve that was taken.
    """

    weight: Tensor
    support: Tensor
    objective: list[float]


def l0_regression(regression: Regression, project: Project) -> SparseSolution:
    """Minimise the objective at the top of this file.

    Args:
        regression: the objective; from the weights that it is zero at the largest are kept to begin with.
        project: keeps what the pattern allows.

    Returns:
        The solution; its objective never rises on the way.
    """
    safe = regression.safe_step()
    support = project(regression.anchor.abs())
    weight = torch.where(support, regression.anchor, 0.0)
    objective, active = [regression.value(weight)], support
    for _ in range(ROUNDS):
        first = _step(regression, weight, objective[-1], project, (safe, safe))
        if first is None:
            break
        weight, support = first.weight, first.support
        objective.append(first.value)
        active = active | support
        own, own_project = regression.among(active), partial(_inside, project, active)
        step, unchanged = _Step(weight[active], support[active], first.value, first.length), 0
        for _ in range(STEPS):
            following = _step(own, step.weight, step.value, own_project, (step.length, safe))
            if following is None or unchanged == SETTLED:
                break
            unchanged = unchanged + 1 if torch.equal(following.support, step.support) else 0
            step = following
            objective.append(step.value)
        weight = torch.zeros_like(weight).masked_scatter(active, step.weight)
        support = torch.zeros_like(active).masked_scatter(active, step.support)
        exact = regression.back_solve(support)
        if (value := regression.value(exact)) <= objective[-1]:  # up to rounding it always is
            weight = exact
            objective.append(value)
    return SparseSolution(weight, support, objective)


def _inside(project: Project, active: Tensor, scores: Tensor) -> Tensor:
    """Return the support among active weights; the others have a score below all."""
    everywhere = torch.full(active.shape, -1.0, dtype=scores.dtype, device=scores.device)
    return project(everywhere.masked_scatter(active, scores))[active]


@dataclass(frozen=True)
class _Step:
    weight: Tensor
    support: Tensor
    value: float
    length: float


def _step(
    regression: Regression, weight: Tensor, before: float, project: Project, lengths: tuple[float, float]
) -> _Step | None:
    """Return the best of several thresholded steps; None where none lowers the objective noticeably.

    Args:
        regression: the objective.
        weight: where it stands.
        before: the objective there.
        project: keeps what the pattern allows.
        lengths: the first to try, and the one that is safe.
    """
    slope, support = regression.gradient(weight), weight != 0

    def at(length: float) -> _Step:
        moved = weight - length * slope
        kept = project(moved.abs())
        there = torch.where(kept, moved, 0.0)
        return _Step(there, kept, regression.value(there), length)

    length, safe = lengths
    best = at(length)
    while best.value >= before and best.length > safe:
        best = at(max(best.length / 2, safe))
    trials = 0  # with another support, that do not improve
    longest = best
    while longest.length < LONGEST * safe and trials < TRIALS:
        longest = at(2 * longest.length)
        if longest.value < min(best.value, before):
            best = longest
        else:
            trials += best.value < before or not torch.equal(longest.support, support)
    return best if before - best.value > NEGLIGIBLE * before else None
