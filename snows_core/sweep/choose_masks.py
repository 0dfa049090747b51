"""The masks of the selected layers, made by a pattern or read; and why the others stay dense."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from snows_core.errors import invalid_argument
from snows_core.masks.given import foreign_masks
from snows_core.masks.patterns import Masks, Pattern, masks_for
from snows_core.network.graph import Network
from snows_core.settings import Saliency
from snows_core.sweep.select import DenseLayer, LayerSelection, PrunableLayer, Reason


def choose_masks(
    network: Network, selection: LayerSelection, pattern: Pattern, saliency: str | Saliency = "magnitude", seed: int = 0
) -> tuple[LayerSelection, Masks]:
    """Make the masks of the selected layers.

    Weights that are zero already stay zero: a pattern takes away, it never gives back.

    Args:
        network: the traced model.
        selection: from :func:`snows_core.sweep.select.select_layers`.
        pattern: sparsity pattern.
        saliency: see :func:`snows_core.masks.patterns.masks_for`.
        seed: decides between equal scores.

    Returns:
        The selection without layers that do not fit, and the masks by layer name.

    Raises:
        SnowsError: when the pattern fits no selected layer (with the reason of every layer).
    """
    weights = {entry.name: network.weight(entry.layer) for entry in selection.prunable}
    reasons: dict[str, tuple[Reason, str]] = {}
    for entry in selection.prunable:
        if misfit := pattern.misfit(weights[entry.name], entry.geometry.groups):
            reasons[entry.name] = (Reason.MISFIT, misfit)
        if not weights[entry.name].any():
            reasons[entry.name] = (Reason.ZERO, "")
    fitting = {name: weight for name, weight in weights.items() if name not in reasons}
    masks = _without_revival(masks_for(fitting, pattern, saliency, seed) if fitting else {}, fitting)
    reasons |= dict.fromkeys(fitting.keys() - masks, (Reason.ZERO_KEPT, ""))
    if masks and all(bool(mask.all()) for mask in masks.values()):
        expected = "one that takes at least one weight out of one of the layers"
        raise invalid_argument("pattern", str(pattern), expected, "Ask for a higher sparsity.")
    return _checked(selection.without(reasons), pattern), masks


def stage_masks(
    network: Network,
    layers: Sequence[PrunableLayer],
    pattern: Pattern,
    saliency: str | Saliency,
    seed: int,
    weights: Mapping[str, Tensor],
) -> Masks:
    """Make the masks of one stage from the weights after the stage before.

    Args:
        network: the traced model.
        layers: those of :func:`choose_masks` for the last stage.
        pattern: of this stage.
        saliency: see :func:`snows_core.masks.patterns.masks_for`.
        seed: decides between equal scores.
        weights: layer name to weight; a layer that is not there has its dense one.

    Returns:
        The masks by layer name. What is zero in the dense network stays zero.
    """
    dense = {entry.name: network.weight(entry.layer) for entry in layers}
    masks = masks_for({name: weights.get(name, weight) for name, weight in dense.items()}, pattern, saliency, seed)
    return {name: mask & (dense[name] != 0) for name, mask in masks.items()}


def read_masks(
    network: Network, selection: LayerSelection, pattern: Pattern, masks: Mapping[str, Tensor] | nn.Module | str | Path
) -> tuple[LayerSelection, Masks]:
    """Read masks made elsewhere, as they are.

    Args:
        network: the traced model.
        selection: from :func:`snows_core.sweep.select.select_layers`.
        pattern: of the call, for messages.
        masks: bool tensors by layer or parameter name, a pruned model or state dict whose zeros define them, or a file.

    Returns:
        The selection without layers that no mask is for, and the masks by layer name.

    Raises:
        SnowsError: on masks of what cannot be pruned, or when none is for a selected layer.
    """
    of_layers = {entry.name: entry.layer.weight_name for entry in selection.prunable}
    of_layers |= {entry.name: entry.weight_name for entry in selection.dense if entry.weight_name}
    weights = {name: network.module.get_parameter(weight).detach() for name, weight in of_layers.items()}
    names = {weight: name for name, weight in of_layers.items()}
    found = foreign_masks(masks, weights, names, known=network.state_names)
    for name in found:
        _refuse_if_unprunable(name, selection)
    selected = {entry.name for entry in selection.prunable}
    chosen = {name: mask for name, mask in found.items() if name in selected}
    return _checked(selection.without(dict.fromkeys(selected - chosen.keys(), (Reason.NO_ZEROS, ""))), pattern), chosen


def _checked(selection: LayerSelection, pattern: Pattern) -> LayerSelection:
    if not selection.prunable:
        expected = "a pattern that fits at least one selected layer"
        raise invalid_argument("pattern", str(pattern), expected, f"({selection.reasons()})")
    return selection


def _refuse_if_unprunable(name: str, selection: LayerSelection) -> None:
    """Refuse a given mask of a weight that cannot be pruned, with the reason."""
    why = "no layer of this network"
    for entry in selection.entries:
        weight_name = entry.weight_name if isinstance(entry, DenseLayer) else entry.layer.weight_name
        if name in (entry.name, weight_name):
            if isinstance(entry, PrunableLayer) or entry.reason.is_a_wish:
                return
            why = entry.sentence
            break
    raise invalid_argument(
        "masks", f"a mask for '{name}'", f"masks of layers that can be pruned ({why})", "Leave it out."
    )


def _without_revival(masks: Masks, weights: Mapping[str, Tensor]) -> Masks:
    """Take weights that are zero already out of masks; layers without any other kept weight are left out."""
    kept = {name: mask & (weights[name] != 0) for name, mask in masks.items()}
    changed = {name: count for name, mask in masks.items() if (count := int(mask.sum() - kept[name].sum()))}
    if changed:
        warnings.warn(
            f"model: {sum(changed.values())} weights that the pattern would keep are zero already and stay zero, "
            f"in {len(changed)} layers",
            stacklevel=4,
        )
    return {name: mask for name, mask in kept.items() if mask.any()}
