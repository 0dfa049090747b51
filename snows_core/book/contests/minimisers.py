"""Minimisers of a layer's loss within a budget of units: Newton steps with any curvature, and Adam."""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.book.contests.fits import LayerFit, split_images
from snows_core.book.contests.meter import GRADIENT, PRODUCT, VALUE, Meter
from snows_core.solvers import Objective, armijo, conjugate_gradients

DECAY = (0.9, 0.999)  # of Adam's means of gradients and of their squares, as published


def descend(
    objective: Objective,
    fit: LayerFit,
    meter: Meter,
    budget: float,
    *,
    preconditioned: bool = True,
    lengthen: bool = False,
    progress: float = 5e-3,
) -> Tensor:
    """Take truncated Newton steps from the layer's start until the budget is spent.

    Each solves ``B d = -g`` by conjugate gradients (B: the objective's products), ended by Martens' rule, and then
    backtracks along d. Unlike :func:`snows_core.solvers.newton` it does not stop where little is gained, so that all
    arms of a race spend the same.

    Args:
        objective: the meter itself, or a curvature made from it.
        fit: the layer.
        meter: behind the objective; it is told every accepted step.
        budget: in units; the line search of the last step may exceed it.
        preconditioned: precondition CG by the layer's M.
        lengthen: begin each line search at twice the last accepted length, for a B whose scale means nothing.
        progress: CG ends where the last three iterations gained less than this share of the decrease, each.

    Returns:
        The weight of the lowest loss, which is the last one.
    """
    weight, length = fit.start, 1.0
    while meter.units + GRADIENT + PRODUCT + VALUE <= budget:
        at = objective.linearise(weight)
        found = conjugate_gradients(
            at.product,
            -at.gradient,
            precondition=fit.solve if preconditioned else None,
            max_iterations=max(1, int(budget - meter.units - VALUE)),
            progress=progress,
            window=3,
        )
        step = length * found.x
        slope = float((at.gradient * step).sum())
        search = armijo(objective.value, weight, step, at.loss, slope, shrink=0.5, max_backtracks=10)
        if search.step == 0:
            break
        weight = weight + search.step * step
        length = 2 * length * search.step if lengthen else 1.0
        meter.note(search.loss)
    return weight


def adam_descend(fit: LayerFit, meter: Meter, budget: float, *, rate: float, parts: int, falling: bool) -> Tensor:
    """Take Adam steps (Kingma & Ba 2015) from the layer's start until the budget is spent.

    Args:
        fit: the layer.
        meter: is charged for each gradient, and told the loss after each pass over the images.
        budget: in units.
        rate: relative to the root mean square of the kept weights, so that one rate can suit all layers.
        parts: into how many mini-batches the images are cut; their order is drawn anew in each pass.
        falling: let the rate fall linearly to nothing over the budget.

    Returns:
        The last weight.
    """
    pieces, generator = split_images(fit.loss, parts), torch.Generator().manual_seed(0)
    free = fit.start.clone()
    rate *= float(free[fit.loss.mask].square().mean().sqrt())
    optimiser = torch.optim.Adam([free], lr=rate, betas=DECAY)
    steps = int(budget) * parts
    left = (lambda step: 1 - step / steps) if falling else (lambda step: 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, left)
    for _ in range(int(budget)):
        for part in torch.randperm(parts, generator=generator).tolist():
            _, slope = pieces.batch(part).gradient(free)
            # The batches' losses add up; scaled by their number, each stands for the whole.
            free.grad = torch.where(fit.loss.mask, slope * parts, 0.0)
            optimiser.step()
            schedule.step()
            meter.units += GRADIENT / parts
        meter.note(meter.free_value(free))
    return free
