"""Joint refinement: all kept weights together, on the dense network's residual stream and logits, without labels.

The sweep is greedy: each layer is solved once, for the layers before it as they are. At high sparsity what it leaves is
repaired by a short descent on one loss over the whole network (:mod:`snows_core.loss.joint`). Zeros stay. The free
parameters are the kept weights, all biases, and the scales and shifts of normalisation layers, which cost no sparsity.
Three solvers take the steps, behind one interface: :mod:`snows_core.sweep.refine_adam` (the default),
:mod:`snows_core.sweep.refine_natural` and :mod:`snows_core.sweep.refine_newton`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from snows_core.distributed import current
from snows_core.loss.joint import JointLoss
from snows_core.masks.patterns import Masks
from snows_core.network.graph import Network
from snows_core.network.nodes import module_of
from snows_core.network.operations import Kind, is_batch_norm
from snows_core.sweep.joint_problem import (
    Effort,
    JointOptions,
    JointProblem,
    JointSteps,
    Pair,
    Position,
    Remask,
    State,
    named,
)
from snows_core.sweep.refine_adam import AdamSteps
from snows_core.sweep.refine_natural import NaturalSteps
from snows_core.sweep.refine_newton import NewtonSteps

__all__ = ["JointOptions", "Pair", "Refinement", "check_refinable", "refine"]

SOLVERS: dict[str, type[JointSteps]] = {"adam": AdamSteps, "natural": NaturalSteps, "newton": NewtonSteps}
"""Name to what takes the steps."""

FEW = 64  # images, of which none is held back
LOOK = 10  # steps between two looks at the loss, at least
SETTLED = 0.5  # of the steps, before which nobody loses patience: at a high rate the loss is high, and falls with it
LOOKS_SHARE = 0.1  # of the cost of the steps, at most, is spent on looks


@dataclass(frozen=True)
class Refinement:
    """What joint refinement did.

    Attributes:
        state: parameter name to new value, for every free parameter.
        loss: normalised loss before, and after (lower is better; the better one is kept), on the images held back, or
            on all where none is.
        steps: optimiser steps taken; fewer than asked for after Ctrl-C or an early stop.
        masks: layer name to mask; those handed in unless masks moved.
        held_back: how many images no step saw.
        early: whether it ended for want of a better loss.
        effort: what it cost.
    """

    state: State = field(repr=False)
    loss: tuple[float, float]
    steps: int
    masks: Masks = field(repr=False)
    held_back: int = 0
    early: bool = False
    effort: Effort = field(default_factory=Effort)


def _free_names(network: Network, weight_names: set[str]) -> list[str]:
    """Return the pruned weights, all biases, and scales and shifts of normalisations, modules and functions alike."""
    found: list[str] = []
    for node in network.nodes:
        norm = is_batch_norm(node) or network.kinds.get(node) is Kind.NORMALISATION
        if not norm and network.kinds.get(node) not in (Kind.CONVOLUTION, Kind.LINEAR):
            continue
        module = module_of(node)
        if module is not None:
            own = [name for name, _ in module.named_parameters(recurse=False)]
            found += [f"{node.target}.{name}" for name in own if norm or name == "bias"]
            continue
        read = node.all_input_nodes if norm else [node.kwargs.get("bias"), *node.args[2:3]]
        read = [source for source in read if isinstance(source, fx.Node) and source.op == "get_attr"]
        found += [str(source.target) for source in read if isinstance(network.constant(source), nn.Parameter)]
    return list(dict.fromkeys([*sorted(weight_names), *found]))


class _Watch:
    """Keeps the best parameters seen, by their loss on images that no step sees.

    Args:
        problem: what is solved.
        images: on which the loss is taken.
    """

    def __init__(self, problem: JointProblem, images: Tensor) -> None:
        self.problem, self.images = problem, images
        self.best, self.kept = problem.start, dict(problem.kept)
        self.first = self.least = problem.loss.value(images, problem.start)
        self.vain = 0
        # A step is about three passes over its images, and one of the dense network; a look is two passes.
        passes = 2 * len(images) / (4 * min(problem.options.batch_size, len(problem.images)))
        self.interval = max(LOOK, math.ceil(passes / LOOKS_SHARE))

    def look(self, state: State) -> float:
        """Take the loss of a state, and keep the state where that is the least so far."""
        state = self.problem.masked(state)
        loss = self.problem.loss.value(self.images, state)
        self.vain += self.problem.effort.steps > SETTLED * self.problem.options.steps
        if loss < self.least:
            self.best, self.least, self.kept, self.vain = state, loss, dict(self.problem.kept), 0
        return loss

    def position(self) -> Position:
        """Return what it has seen, for the looks to come."""
        values = {"first": self.first, "least": self.least, "vain": self.vain}
        return Position(values, named("best", self.best) | named("best_kept", self.kept))

    def go_on(self, position: Position) -> None:
        """Go on from a ``position``."""
        device, best, kept = self.problem.loss.device, position.part("best"), position.part("best_kept")
        for name in ("first", "least", "vain"):
            setattr(self, name, position.values[name])
        self.best = {name: best[name].to(device) for name in self.best}
        self.kept = {name: kept[name].to(device) for name in self.kept}

    @property
    def tired(self) -> bool:
        """Whether patience has come to its end."""
        return self.vain >= self.problem.options.patience


def _held_back(images: Tensor, options: JointOptions) -> tuple[Tensor, Tensor]:
    """Return the images that steps see, and those that judge."""
    count = round(options.held_back * len(images)) if len(images) >= FEW else 0
    if count == 0:
        return images, images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed)).to(images.device)
    return images[order[count:]], images[order[:count]]


def check_refinable(network: Network, weight_names: Iterable[str], images: Tensor) -> None:
    """Refuse a network that joint refinement cannot compare with its dense self, before any work.

    Args:
        network: the traced network.
        weight_names: parameter names of the weights that will be pruned.
        images: two or more, on the device of the network.

    Raises:
        SnowsError: where neither a residual addition, nor an activation, nor the output follows image and weights in
            floating-point numbers.
    """
    free = {name: network.module.get_parameter(name) for name in _free_names(network, set(weight_names))}
    with suppress(RuntimeError):  # what fails at the derivatives of a network is told when refinement comes to it
        JointLoss(network, images[:2], free)


class Keeper(Protocol):
    """Keeps positions of a joint stage on disk (:class:`snows_core.sweep.checkpoint.Checkpoint`).

    Attributes:
        position: the last one that is there; None before the first.
        is_due: whether it is time for another one.
    """

    position: Position | None

    @property
    def is_due(self) -> bool: ...

    def keep_joint(self, position: Position) -> None: ...


def refine(
    pair: Pair,
    images: Tensor,
    options: JointOptions,
    remask: Remask | None = None,
    keeper: Keeper | None = None,
) -> Refinement:
    """Refine a pruned network jointly.

    Args:
        pair: the dense and the pruned network.
        images: calibration images (N, C, H, W), anywhere.
        options: solver, steps, rate and so on.
        remask: chooses masks from scores, where ``options.moving_masks``.
        keeper: keeps positions, and knows the one where an earlier run was killed.

    Returns:
        The new parameters, or the old ones where the loss on the images held back did not fall. Ctrl-C ends it early
        and keeps what is better.

    Raises:
        SnowsError: on a network that has nothing to compare: no residual addition, activation or float output.
    """
    seen, judges = _held_back(images, options)
    problem = joint_problem(pair, seen, options, remask, measured_on=images)
    watch = _Watch(problem, judges)
    early = _drive(problem, watch, keeper)
    masks, names = pair.masks, pair.weight_names
    # Each has taken the same steps, to within what machines of another kind round in another way.
    watch.best = {name: current().from_main(value) for name, value in watch.best.items()}
    moved = {name: watch.kept[names[name]] for name in masks} if options.moving_masks else masks
    held = 0 if judges is images else len(judges)
    return Refinement(watch.best, (watch.first, watch.least), problem.effort.steps, moved, held, early, problem.effort)


def joint_problem(
    pair: Pair,
    images: Tensor,
    options: JointOptions,
    remask: Remask | None = None,
    measured_on: Tensor | None = None,
) -> JointProblem:
    """Return what a solver of the joint stage is given: as :func:`refine`, but every image is for its steps.

    Args:
        pair: the dense and the pruned network.
        images: those that steps see (N, C, H, W), anywhere.
        options: solver, steps, rate and so on.
        remask: chooses masks from scores.
        measured_on: images that the scale of the loss is taken from; default ``images``.
    """
    network, names = pair.network, pair.weight_names
    first_weight = next(network.module.parameters())
    device, dtype = first_weight.device, first_weight.dtype
    kept = {names[name]: mask.to(device) for name, mask in pair.masks.items()}
    start = dict(pair.model.named_parameters(remove_duplicate=False))
    free = [name for name in _free_names(network, set(kept)) if name in start]
    before = {name: start[name].detach().to(device, dtype, copy=True) for name in free}
    loss = JointLoss(network, images if measured_on is None else measured_on, before, current())
    layers = {parameter: layer for layer, parameter in names.items() if layer in pair.masks}
    generator = torch.Generator().manual_seed(options.seed)
    return JointProblem(loss, images, before, kept, layers, options, remask, generator)


def _drive(problem: JointProblem, watch: _Watch, keeper: Keeper | None) -> bool:
    """Take the steps, look at the loss now and then, and tell whether patience ended it."""
    options, solver = problem.options, SOLVERS[problem.options.solver](problem)
    begun = looked = True
    if keeper is not None and keeper.position is not None:
        solver.go_on(keeper.position)
        watch.go_on(keeper.position)
        looked = keeper.position.values["looked"]
    else:
        begun = False
    total = {"total": options.steps, "initial": problem.effort.steps}
    with tqdm(**total, desc="refining", unit="step", disable=not options.progress) as bar:
        try:
            while problem.effort.steps < options.steps and not (looked and watch.tired):
                solver.step(problem.effort.steps + 1)
                problem.effort.steps, begun = problem.effort.steps + 1, True
                looked = problem.effort.steps % watch.interval == 0
                if looked:
                    words = f"{watch.look(solver.state):.4g}"
                    bar.set_postfix(loss=words, best=f"{watch.least:.4g}", refresh=False)
                bar.update()
                if keeper is not None:
                    _keep(keeper, solver, watch, looked)
        except KeyboardInterrupt:
            if problem.loss.processes.several:  # the others are elsewhere, and would wait for this one
                raise
            if options.progress:
                tqdm.write("interrupted: refinement ends here, the better weights are kept", file=sys.stderr)
        if begun and not looked:
            watch.look(solver.state)
    return looked and watch.tired


def _keep(keeper: Keeper, solver: JointSteps, watch: _Watch, looked: bool) -> None:
    """Keep where the steps are, if it is time and they can say."""
    steps = solver.problem.effort.steps
    last = steps == solver.problem.options.steps or (looked and watch.tired)
    position = solver.position(steps) if last or keeper.is_due else None
    if position is not None:
        seen = watch.position()
        values = position.values | seen.values | {"looked": looked}
        keeper.keep_joint(Position(values, position.tensors | seen.tensors))
