"""What comes before any solve: the traced network, the layers, and their masks; the same for a run and its estimate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import first_images
from snows_core.errors import invalid_argument
from snows_core.masks.patterns import Masks, Pattern, Saliency
from snows_core.network.copies import unwrap
from snows_core.network.graph import Network
from snows_core.sweep.choice import LayerChoice
from snows_core.sweep.select import LayerSelection, choose_masks, select_layers


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
        plan: every layer, with the reason where it stays dense.
        masks: the masks of the others by name.
    """

    model: nn.Module
    network: Network
    plan: list[LayerSelection]
    masks: Masks

    @property
    def todo(self) -> list[LayerSelection]:
        """Layers to be pruned, in execution order."""
        return [entry for entry in self.plan if not entry.reason]

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
    plan = select_layers(network, model, example, choice.layers, choice.exclude, keep_ends=choice.masks is None)
    plan, masks = choose_masks(network, plan, choice.pattern, choice.saliency, choice.masks, seed=choice.seed)
    return Prepared(model, network, plan, masks)
