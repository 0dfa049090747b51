"""What comes before any solve: the traced network, the layers, and their masks; the same for a run and its estimate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import first_images
from snows_core.errors import closest, invalid_argument
from snows_core.masks.patterns import Masks, Pattern, Saliency, Unstructured
from snows_core.methods import METHODS
from snows_core.methods.choose_k import K
from snows_core.network.copies import unwrap
from snows_core.network.graph import Network
from snows_core.settings import Recipe
from snows_core.sweep.choice import LayerChoice
from snows_core.sweep.choose_masks import choose_masks, read_masks
from snows_core.sweep.select import LayerSelection, PrunableLayer, select_layers
from snows_core.sweep.sweep import LayerSteps


@dataclass(frozen=True)
class Choice:
    """Which layers get which masks, as the caller asked for it.

    Attributes:
        pattern: sparsity pattern, for masks that are made here.
        saliency: "magnitude", or a function of (name, weight).
        masks: masks made elsewhere, instead of the pattern.
        layers: layers to prune; None for the default.
        exclude: layers to leave dense.
        leaf_modules: modules not to look into.
        seed: decides between equal scores.
    """

    pattern: Pattern
    saliency: str | Saliency = "magnitude"
    masks: Mapping[str, Tensor] | nn.Module | None = None
    layers: LayerChoice = None
    exclude: LayerChoice = None
    leaf_modules: Iterable[type[nn.Module] | str] = ()
    seed: int = 0


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


def arguments_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's own arguments, for hints at a misspelt option."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD)


def prepare(model: nn.Module, parts: list[Tensor], choice: Choice) -> Prepared:
    """Trace a network, choose its layers and make or read their masks.

    Args:
        model: the caller's network in eval mode, possibly wrapped; not changed.
        parts: calibration images; two of them are run.
        choice: what the caller asked for.

    Returns:
        The network, its layers and masks.

    Raises:
        SnowsError: on a model that cannot be pruned, images that do not fit it, or a choice that cannot be met.
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
    network = Network(model, choice.leaf_modules, example=example)
    selection = select_layers(network, model, example, choice.layers, choice.exclude, keep_ends=choice.masks is None)
    if choice.masks is None:
        selection, masks = choose_masks(network, selection, choice.pattern, choice.saliency, choice.seed)
    else:
        selection, masks = read_masks(network, selection, choice.pattern, choice.masks)
    return Prepared(model, network, selection, masks)


def layer_steps(mask: str, update: str, recipe: Recipe, k: K, choice: Choice) -> LayerSteps:
    """Return what is done with each layer, by the names of its methods.

    Args:
        mask: "magnitude" for masks that are made, or given, before the sweep; else a method that chooses masks.
        update: a method that re-fits weights.
        recipe: settings of both.
        k: operations behind a layer that a loss sees, or "auto".
        choice: what the caller asked for.

    Returns:
        The methods; one object where both are the same.

    Raises:
        SnowsError: on an unknown name, or a method that does not do what is asked of it.
    """
    choosers = [name for name, method in METHODS.items() if method.chooses_masks]
    updates = [name for name, method in METHODS.items() if method.updates_weights]
    if update not in updates:
        raise invalid_argument("update", repr(update), f"one of {updates}", closest(str(update), updates))
    fitted = METHODS[update](recipe, k)
    if mask == "magnitude":
        return LayerSteps(fitted)
    if mask not in choosers:
        known = ["magnitude", *choosers]
        raise invalid_argument("mask", repr(mask), f"one of {known}", closest(str(mask), known))
    if choice.masks is not None:
        raise invalid_argument("mask", repr(mask), "no masks= beside it", "Masks are either given or chosen.")
    if isinstance(choice.pattern, Unstructured) and choice.pattern.scope == "global":
        fix = f"For instance pattern={choice.pattern.sparsity:g}: the same share in every layer."
        raise invalid_argument("mask", f"{mask!r} with the pattern {choice.pattern}", "a pattern of one layer", fix)
    return LayerSteps(fitted, fitted if mask == update else METHODS[mask](recipe, k), choice.pattern)
