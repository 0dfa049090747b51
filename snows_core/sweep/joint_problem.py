"""What a solver of the joint stage is given, and what it gives back: the words that both solvers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.loss.joint import JointLoss
from snows_core.masks.patterns import Masks
from snows_core.network.graph import Network
from snows_core.settings import REFINE_BATCH, Augment, JointSolver, PruneSettings

State = dict[str, Tensor]
"""Parameter name to value."""

Remask = Callable[[dict[str, Tensor]], Masks]
"""Layer name to scores, as large as its weight, to the masks that keep the highest within the pattern's budget."""


@dataclass(frozen=True)
class JointOptions:
    """Settings of joint refinement.

    Attributes:
        steps: optimiser steps.
        rate: largest learning rate of "adam", as a share of a parameter's size, or of "natural"; None for the solver's
            own.
        batch_size: images a step.
        augment: changes each batch at random, for instance :func:`~snows_core.sweep.augment.flip_and_shift`; dense
            targets follow it.
        seed: of batches, augmentation and of which images are held back.
        progress: show a progress bar.
        solver: "adam" (:mod:`snows_core.sweep.refine_adam`), "natural" (:mod:`snows_core.sweep.refine_natural`) or
            "newton" (:mod:`snows_core.sweep.refine_newton`).
        moving_masks: let the masks change on the way (:mod:`snows_core.sweep.moving_masks`).
        held_back: share of the images that no step sees; their loss chooses the weights and ends the run. Fewer than
            ``FEW`` images are all used for both.
        patience: end after so many looks at that loss in a row without a better one, in the second half of the steps.
    """

    steps: int
    rate: float | None = None
    batch_size: int = REFINE_BATCH
    augment: Augment | None = None
    seed: int = 0
    progress: bool = True
    solver: JointSolver = "adam"
    moving_masks: bool = False
    held_back: float = 0.125
    patience: int = 10


def joint_options(settings: PruneSettings) -> JointOptions:
    """Return what the settings of a run, whose number of steps is known, say of its joint stage."""
    return JointOptions(
        settings.refine or 0,
        augment=settings.augment,
        seed=settings.seed,
        progress=settings.progress,
        solver=settings.refine_solver,
        moving_masks=settings.moving_masks,
    )


@dataclass(frozen=True)
class Pair:
    """A pruned network beside the dense one that it is held against.

    Attributes:
        network: the traced dense network.
        model: the pruned model: where to start.
        masks: layer name to mask.
        weight_names: layer name to parameter name.
    """

    network: Network
    model: nn.Module
    masks: Masks
    weight_names: Mapping[str, str]


@dataclass
class Effort:
    """What a solver has spent.

    Attributes:
        steps: optimiser steps.
        images: gradients times images.
        products: curvature products.
        image_products: curvature products times images.
    """

    steps: int = 0
    images: int = 0
    products: int = 0
    image_products: int = 0


@dataclass
class JointProblem:
    """One joint stage.

    Attributes:
        loss: the joint loss.
        images: those that steps see, anywhere.
        start: every free parameter, on the device of the network; pruned weights are zero.
        kept: parameter name to mask, bool, for every pruned weight; a solver that moves masks puts new ones here.
        layers: parameter name of a pruned weight to layer name.
        options: settings.
        remask: chooses masks from scores; None where masks stay.
        generator: source of batches and augmentation.
        effort: what has been spent; solvers count here.
    """

    loss: JointLoss
    images: Tensor
    start: State
    kept: dict[str, Tensor]
    layers: dict[str, str]
    options: JointOptions
    remask: Remask | None
    generator: torch.Generator
    effort: Effort = field(default_factory=Effort)

    def batch(self, size: int) -> Tensor:
        """Draw images for one step, (N, C, H, W) with N at most ``size``, augmented, on the network's device."""
        chosen = torch.randperm(len(self.images), generator=self.generator)[:size]
        images = self.images[chosen.to(self.images.device)].to(self.loss.device)
        augment = self.options.augment
        return images if augment is None else augment(images, self.generator)

    def masked(self, state: State) -> State:
        """Return a copy of a state with exact zeros where the masks prune."""
        copies = {name: value.detach().clone() for name, value in state.items()}
        return {
            name: torch.where(self.kept[name], value, 0.0) if name in self.kept else value
            for name, value in copies.items()
        }


@dataclass(frozen=True)
class Position:
    """Where a run of the joint stage is: all that its next step depends on.

    Attributes:
        values: numbers, texts and lists, JSON-ready.
        tensors: name to tensor; those of a dictionary begin with its name and a slash.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> State:
        """Return one of the dictionaries of tensors."""
        start = f"{name}/"
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}


def named(name: str, tensors: Mapping[str, Tensor]) -> State:
    """Return a dictionary as a part of a :class:`Position`."""
    return {f"{name}/{key}": value for key, value in tensors.items()}


class JointSteps(ABC):
    """Takes the steps of the joint stage, one after the other.

    Args:
        problem: what to minimise, from where, and how; masks that move are moved there, and effort is counted there.

    Attributes:
        state: the parameters after the last step.
    """

    def __init__(self, problem: JointProblem) -> None:
        self.problem = problem
        self.state: State = problem.start
        self.probes = torch.Generator().manual_seed(problem.options.seed)

    @abstractmethod
    def step(self, number: int) -> None:
        """Take one step, counted from 1."""

    def position(self, number: int) -> Position | None:
        """Return all that the steps after ``number`` depend on; None where a few steps more have to be taken first."""
        return self._common(number)

    def _common(self, number: int) -> Position:
        """Return what is a part of every position."""
        generators = {"batches": self.problem.generator.get_state(), "probes": self.probes.get_state()}
        tensors = named("state", self.state) | named("kept", self.problem.kept) | generators
        return Position({"step": number, "effort": asdict(self.problem.effort)}, tensors)

    def go_on(self, position: Position) -> None:
        """Go on from a ``position`` of an equal problem."""
        self.state = self._like(self.problem.start, position.part("state"))
        self.problem.kept = self._like(self.problem.kept, position.part("kept"))
        self.problem.generator.set_state(position.tensors["batches"])
        self.probes.set_state(position.tensors["probes"])
        self.problem.effort = Effort(**position.values["effort"])

    def _like(self, order: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> State:
        """Return tensors on the device of the run, in the order of others: it decides what stands where in a vector."""
        return {name: found[name].to(self.problem.loss.device) for name in order if name in found}
