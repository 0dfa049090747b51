"""What comes before any solve: the traced network, the layers, and their masks; the same for a run and its estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import first_images
from snows_core.errors import closest, invalid_argument
from snows_core.masks.patterns import Masks, Unstructured, parse_pattern
from snows_core.methods import METHODS
from snows_core.network.copies import unwrap
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings, get_recipe, settings_of
from snows_core.sweep.choose_masks import choose_masks, read_masks
from snows_core.sweep.select import LayerSelection, PrunableLayer, select_layers
from snows_core.sweep.sweep import LayerSteps


@dataclass(frozen=True)
class Prepared:
    """A network ready to be pruned.

    Attributes:
        model: the caller's network without wrappers.
        network: its traced copy, in single or double precision, on the device of the model.
        selection: every layer, with the reason where it stays dense.
        masks: the masks of the others by name.
    """

    model: nn.Module
    network: Network
    selection: LayerSelection
    masks: Masks

    @property
    def layers(self) -> list[PrunableLayer]:
        """Layers to be pruned, in execution order."""
        return self.selection.prunable

    def move(self, device: torch.device) -> Masks:
        """Bring the traced network to a device, and return the masks there."""
        self.network.module.to(device)
        return {name: mask.to(device) for name, mask in self.masks.items()}


def checked_settings(function: Callable[..., Any], /, **options: Any) -> PruneSettings:
    """Read what a function was given, the pattern and the names of methods included.

    Args:
        function: who asks.
        **options: see :func:`snows_core.settings.settings_of`.

    Returns:
        The settings, with the pattern itself instead of its text.

    Raises:
        SnowsError: on an unknown option or method, or a value that cannot be meant.
    """
    settings = settings_of(function, **options)
    settings = replace(settings, pattern=parse_pattern(settings.pattern))
    layer_steps(settings)  # refuses names that no method has, before any work
    return settings


def prepare(model: nn.Module, parts: list[Tensor], settings: PruneSettings) -> Prepared:
    """Trace a network, choose its layers and make or read their masks.

    Args:
        model: the caller's network in eval mode, possibly wrapped; not changed.
        parts: calibration images; two of them are run.
        settings: what the caller asked for, from :func:`checked_settings`.

    Returns:
        The network, its layers and masks.

    Raises:
        SnowsError: on a model that cannot be pruned, images that do not fit it, or settings that cannot be met.
    """
    if not isinstance(model, nn.Module):
        raise invalid_argument(
            "model", type(model).__name__, "a torch.nn.Module", "Pass the network itself, not its name."
        )
    model = unwrap(model)
    example = first_images(parts, 2)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None:
        example = example.to(first.device, torch.float64 if first.dtype == torch.float64 else torch.float32)
    network = Network(model, settings.leaf_modules, example=example)
    given, pattern = settings.masks, parse_pattern(settings.pattern)
    selection = select_layers(network, model, example, settings.layers, settings.exclude, keep_ends=given is None)
    if given is None:
        selection, masks = choose_masks(network, selection, pattern, settings.saliency, settings.seed)
    else:
        selection, masks = read_masks(network, selection, pattern, given)
    return Prepared(model, network, selection, masks)


def layer_steps(settings: PruneSettings) -> LayerSteps:
    """Return what is done with each layer, by the names of its methods.

    Args:
        settings: what the caller asked for; ``mask`` is "magnitude" for masks that are made, or given, before the
            sweep, else a method that chooses masks; ``update`` is a method that re-fits weights.

    Returns:
        The methods; one object where both are the same.

    Raises:
        SnowsError: on an unknown name, or a method that does not do what is asked of it.
    """
    mask, update = settings.mask, settings.update
    choosers = [name for name, method in METHODS.items() if method.chooses_masks]
    updates = [name for name, method in METHODS.items() if method.updates_weights]
    recipe, k = get_recipe(settings.recipe), settings.k
    if update not in updates:
        raise invalid_argument("update", repr(update), f"one of {updates}", closest(update, updates))
    fitted = METHODS[update](recipe, k)
    if mask == "magnitude":
        return LayerSteps(fitted)
    if mask not in choosers:
        known = ["magnitude", *choosers]
        raise invalid_argument("mask", repr(mask), f"one of {known}", closest(mask, known))
    improves = METHODS[mask].improves_masks
    if settings.masks is not None and not improves:
        raise invalid_argument("mask", repr(mask), "no masks= beside it", "Masks are either given or chosen.")
    pattern = parse_pattern(settings.pattern)
    if isinstance(pattern, Unstructured) and pattern.scope == "global" and not improves:
        fix = f"For instance pattern={pattern.sparsity:g}: the same share in every layer."
        raise invalid_argument("mask", f"{mask!r} with the pattern {pattern}", "a pattern of one layer", fix)
    return LayerSteps(fitted, fitted if mask == update else METHODS[mask](recipe, k), pattern)
