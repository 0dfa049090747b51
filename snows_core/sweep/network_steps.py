"""What comes before the sweep of a stage where a method looks at the whole network: its masks, and its weights.

Gradients are taken at the weights that the stage begins with, of as many images as the sweeps see. They may take a
share of the memory; where they do not fit, fewer of them, of mini-batches, do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snows_core.distributed import current
from snows_core.errors import invalid_argument
from snows_core.masks.patterns import Masks, Pattern
from snows_core.masks.schedule import share_at
from snows_core.methods import NETWORK_METHODS, NetworkMethod, NetworkProblem, NetworkSolution
from snows_core.network.graph import Network
from snows_core.provenance import tensor_digest
from snows_core.settings import OWN, PruneSettings, get_recipe
from snows_core.sweep.memory import memory_budget
from snows_core.sweep.prepare import Prepared

SEED = 15_485_863  # between the seeds of layers, which count from seed * 1_000_003
GRADIENT_SHARE = 0.3  # of the memory; a method holds one working copy beside them


def chooses_network_masks(settings: PruneSettings) -> bool:
    """Tell whether a method that looks at the whole network chooses the masks of these settings."""
    return settings.mask in NETWORK_METHODS


def reads_labels(settings: PruneSettings) -> bool:
    """Tell whether a method of these settings takes gradients of the loss, with labels given or drawn."""
    asked = (settings.mask, settings.update)
    return any(name in NETWORK_METHODS and NETWORK_METHODS[name].reads_labels for name in asked)


def labels_record(settings: PruneSettings) -> str | None:
    """Return what a manifest says of labels: drawn ones, or a digest of those given; None where nothing reads any."""
    if not reads_labels(settings):
        return None
    if settings.labels is None:
        return "drawn from the dense network's softmax"
    return f"given, {tensor_digest(torch.tensor(settings.labels))}"


def check_label_count(settings: PruneSettings, images: int) -> None:
    """Refuse labels that are not one an image.

    Args:
        settings: with labels or without.
        images: calibration images that a run reads.

    Raises:
        SnowsError: on too few of them, or on more where ``max_images`` leaves no image out.
    """
    labels = settings.labels
    if labels is None or len(labels) == images or (settings.max_images == images and len(labels) > images):
        return
    raise invalid_argument("labels", f"{len(labels)} labels", f"one per calibration image ({images})")


def with_labels_in_order(settings: PruneSettings, order: Tensor) -> PruneSettings:
    """Return settings whose labels, where there are some, follow images into another order.

    Args:
        settings: of a run.
        order: the place that each image had, (N,).
    """
    if settings.labels is None:
        return settings
    return replace(settings, labels=torch.tensor(settings.labels)[order].tolist())


class NetworkSteps:
    """The methods of a run that look at the whole network.

    Args:
        prepared: network and layers, on the device of the run.
        images: calibration images (N, C, H, W), on that device or in host memory.
        settings: of the run, its labels in the order of the images.

    Attributes:
        record: what a manifest says of the gradients; None before they were taken.
        operations: what it says of the multiplications of one image, in the pruned layers; empty where nothing bounds
            them.
        own: layer name to the weight of the method that chose the last masks, where another update starts there; empty
            where none does.
    """

    def __init__(self, prepared: Prepared, images: Tensor, settings: PruneSettings) -> None:
        self.network: Network = prepared.network
        self.names = {entry.name: entry.layer.weight_name for entry in prepared.layers}
        self.dense = {entry.name: self.network.weight(entry.layer) for entry in prepared.layers}
        self.pattern = prepared.schedule[-1]
        self.images, self.seed = images, settings.seed * 1_000_003 + SEED
        self.labels = None if settings.labels is None else torch.tensor(settings.labels[: len(images)])
        device = next(self.network.module.parameters()).device
        self.room = GRADIENT_SHARE * current().least(memory_budget(settings.max_memory, device))
        self.choose = _made(settings.mask)
        self.update = self.choose if settings.update == settings.mask else _made(settings.update)
        self.record: dict[str, Any] | None = None
        self.operations: dict[str, float] = {}
        self.flops = settings.flops
        self.own: Mapping[str, Tensor] = {}
        self._starts_own = get_recipe(settings.recipe).warm_start == OWN
        self._solved: NetworkSolution | None = None

    def masks(self, pattern: Pattern, before: Mapping[str, Tensor]) -> Masks:
        """Return the masks of a stage; where the same method updates, its weights are noted.

        Args:
            pattern: of the stage.
            before: layer name to the weight after the stage before.
        """
        assert self.choose is not None, "a method of the whole network chooses masks"
        problem = self._problem(pattern, before)
        if self.choose is self.update:
            self._solved = self.choose.solve(problem)
            masks = self._solved.masks
        elif self._starts_own and not self.choose.layer_update:  # such an update is where solves start anyway
            solved = self.choose.solve(problem)
            masks, self.own = solved.masks, solved.weights
        else:
            masks = self.choose.choose(problem)
        self._note(problem)
        if self.flops is not None:
            kept = {layer: int(mask.sum()) for layer, mask in masks.items()}
            self.operations = {"dense": problem.operations(), "kept": problem.operations(kept)}
        return masks

    def weights(self, pattern: Pattern, before: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Return weights on the masks of a stage.

        Args:
            pattern: of the stage.
            before: layer name to the weight after the stage before.
            masks: layer name to mask, on the device of the run.
        """
        assert self.update is not None, "a method of the whole network updates weights"
        solved, self._solved = self._solved, None
        if solved is not None:
            return solved.weights
        problem = self._problem(pattern, before)
        weights = self.update.update(problem, masks)
        self._note(problem)
        return weights

    def look(self) -> None:
        """Read all images once, as each stage does, at the dense weights and for drawn labels; an estimate times it."""
        self.labels = None
        problem, method = self._problem(self.pattern, {}), self.choose or self.update
        if method is not None and not method.reads_labels:
            method.choose(problem)
        else:
            problem.gradients  # noqa: B018 - they are made when they are asked for

    def _problem(self, pattern: Pattern, before: Mapping[str, Tensor]) -> NetworkProblem:
        flops = None if self.flops is None else share_at(self.flops, pattern, self.pattern)
        given = (self.network, self.names, self.images, pattern, self.seed, self.labels, before, self.room)
        return NetworkProblem(*given, flops)

    def _note(self, problem: NetworkProblem) -> None:
        if "gradients" in vars(problem):  # those that nobody asked for are not made
            self.record = {"images": len(self.images), "rows": len(problem.gradients)}


def network_steps(prepared: Prepared, images: Tensor, settings: PruneSettings) -> NetworkSteps | None:
    """Return the methods of a run that look at the whole network; None where there is none.

    Args:
        prepared: network and layers, on the device of the run.
        images: calibration images (N, C, H, W).
        settings: of the run, its labels in the order of the images.
    """
    if settings.mask in NETWORK_METHODS or settings.update in NETWORK_METHODS:
        return NetworkSteps(prepared, images, settings)
    return None


def _made(name: str | None) -> NetworkMethod | None:
    return NETWORK_METHODS[name]() if name in NETWORK_METHODS else None
