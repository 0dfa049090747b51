"""What comes before any solve: the traced network, the layers, and their masks; the same for a run and its estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import first_images
from snows_core.errors import closest, invalid_argument
from snows_core.masks.patterns import Masks, parse_pattern
from snows_core.network.copies import unwrap
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings, settings_of
from snows_core.sweep.select import LayerSelection, choose_masks, select_layers

# Names of the methods that choose masks and that re-fit weights.
METHOD_NAMES: dict[str, tuple[str, ...]] = {"mask": ("magnitude",), "update": ("snows",)}


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


def checked_settings(function: Callable[..., Any], /, **options: Any) -> PruneSettings:
    """Read what a function was given, the pattern and the names of methods included.

    Args:
        function: who asks.
        **options: see :func:`snows_core.settings.settings_of`.

    Returns:
        The settings, with the pattern itself instead of its text.

    Raises:
        SnowsError: on an unknown option or name, or a value that cannot be meant.
    """
    settings = settings_of(function, **options)
    for name, choices in METHOD_NAMES.items():
        if (value := getattr(settings, name)) not in choices:
            raise invalid_argument(name, repr(value), f"one of {choices}", closest(value, choices))
    return replace(settings, pattern=parse_pattern(settings.pattern))


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
    plan = select_layers(network, model, example, settings.layers, settings.exclude, keep_ends=settings.masks is None)
    plan, masks = choose_masks(
        network, plan, parse_pattern(settings.pattern), settings.saliency, settings.masks, seed=settings.seed
    )
    return Prepared(model, network, plan, masks)
