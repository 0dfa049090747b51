"""What will be pruned: every layer of a network, selected or left dense with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from snows_core.errors import invalid_argument
from snows_core.masks.given import foreign_masks
from snows_core.masks.patterns import Masks, Pattern, Saliency, masks_for
from snows_core.network.check_trace import Example, check_trace
from snows_core.network.copies import unwrap
from snows_core.network.derivatives import reads_only_the_shape
from snows_core.network.geometry import Geometry, geometry_of, patches
from snows_core.network.graph import Layer, Network
from snows_core.network.nodes import module_of
from snows_core.network.operations import Kind
from snows_core.network.unlisted import grouped, unlisted_weights
from snows_core.sweep.choice import LayerChoice, matching

__all__ = ["LayerChoice", "LayerSelection", "check_trace", "choose_masks", "select_layers"]
_LEFT_OUT = ("not among layers=", "excluded")


@dataclass(frozen=True)
class LayerSelection:
    """A layer and what is to become of it.

    Attributes:
        layer: its name, kind and place; None for weights that the traced graph does not show.
        name: its name in reports.
        shape: shape of its weight.
        geometry: how it reads its input; None when skipped.
        reason: why it stays dense; empty when it is pruned.
    """

    layer: Layer | None
    name: str
    shape: tuple[int, ...]
    geometry: Geometry | None
    reason: str


def _shared_weights(network: Network, chosen: Iterable[Layer]) -> None:
    """Refuse chosen layers whose weight another node of the graph reads too, as a layer or in any other way."""
    users: dict[int, list[fx.Node]] = {}
    for node in network.module.graph.nodes:
        if node.op == "call_module":
            for parameter in module_of(node).parameters():
                users.setdefault(parameter.data_ptr(), []).append(node)
        elif node.op == "get_attr" and isinstance(value := network.constant(node), Tensor):
            readers = [user for user in node.users if not reads_only_the_shape(user)]
            users.setdefault(value.data_ptr(), []).extend(readers)
    for layer in chosen:
        sharing = users.get(network.weight(layer).data_ptr(), [])
        if len(sharing) > 1:
            names = ", ".join(f"'{node.name}'" for node in sharing)
            raise invalid_argument(
                "layers",
                f"'{layer.name}', whose weight is used {len(sharing)} times ({names})",
                "layers with a weight of their own",
                f"Leave it dense: exclude=['{layer.name}'].",
            )


def _not_linear(weight: Tensor, geometry: Geometry, seen: Example) -> str:
    """Say why a layer is no linear map of its stored weight (weight standardisation, unknown padding); "" if it is."""
    transformed = "its stored weight is transformed before use (weight standardisation?)"
    rows = patches(seen.x[:1], geometry)
    predicted = rows @ weight.flatten(1).view(geometry.groups, -1, rows.shape[-1]).transpose(1, 2)
    actual = (seen.y - seen.offset)[:1]
    actual = actual.flatten(2).transpose(1, 2) if geometry.kernel else actual
    if predicted.numel() != actual.numel():
        return transformed  # it pads in a way of its own
    predicted = predicted.permute(1, 0, 2).reshape(actual.shape)
    gap = float((predicted - actual).abs().max() / actual.abs().max().clamp(min=1e-12))
    return "" if gap < 1e-2 else transformed


def _stored(network: Network, layer: Layer) -> Tensor:
    """Return the tensor that a layer multiplies by, a parameter or a buffer; an empty one where it is computed."""
    if layer.weight_name:
        return network.weight(layer)
    source = layer.node.args[1] if layer.node.op == "call_function" and len(layer.node.args) > 1 else None
    return network.constant(source) if isinstance(source, fx.Node) and source.op == "get_attr" else torch.empty(0)


def _reason(network: Network, layer: Layer, default: bool) -> str:
    """Say why a layer cannot or (by ``default``) should not be pruned, as far as place and kind tell; "" if it may."""
    weight = _stored(network, layer)
    if not layer.weight_name:
        return "its weight is a buffer, not a parameter" if weight.numel() else "its weight is computed, not stored"
    if layer.kind is Kind.CONVOLUTION and weight.ndim != 4:
        return f"{weight.ndim - 2}-dimensional convolution"
    if layer.kind is Kind.LINEAR and weight.ndim != 2:
        return f"a weight of {weight.ndim} axes"
    if weight.is_complex():
        return "complex weights"
    if network.image not in network.before(layer):
        return "does not depend on the image"
    if network.image in network.beside(layer):
        return "its bias is computed from the image"
    if default and network.is_first(layer):
        return "first layer (reads the image)"
    return "classifier" if default and network.is_classifier(layer.node) else ""


def select_layers(
    network: Network,
    model: nn.Module,
    example: Tensor,
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    keep_ends: bool = True,
) -> list[LayerSelection]:
    """Decide for every layer whether it can and should be pruned, before any mask is made.

    Args:
        network: the traced model.
        model: the model itself, to compare with and to find weights that the graph does not show.
        example: a few images.
        layers: names, globs, classes, modules, or a predicate of (name, module); None for all but the first layer and
            the classifier. See :func:`snows_core.sweep.choice.matching`.
        exclude: likewise, to be left dense.
        keep_ends: without ``layers``, leave the first layer and the classifier dense (not so for given masks).

    Returns:
        One entry per layer in execution order, then one for every other weight that cannot be pruned.

    Raises:
        SnowsError: on unknown names, nothing selected (with the reason of every layer), or a weight used twice among
            the selected.
    """
    model = unwrap(model)
    seen = check_trace(network, model, example)
    names = [layer.name for layer in network.layers]
    wanted, unwanted = (
        matching(choice, argument, names, model) for choice, argument in ((layers, "layers"), (exclude, "exclude"))
    )
    planned: list[LayerSelection] = []
    for layer in network.layers:
        weight, geometry = _stored(network, layer), None
        if layers is not None and layer.name not in wanted:
            reason = _LEFT_OUT[0]
        elif layer.name in unwanted:
            reason = _LEFT_OUT[1]
        else:
            reason = _reason(network, layer, layers is None and keep_ends)
        if not reason:
            geometry = geometry_of(layer.node, weight)
            reason = _not_linear(weight, geometry, seen[layer.name])
        planned.append(LayerSelection(layer, layer.name, tuple(weight.shape), geometry, reason))
    listed = {*names, *(layer.weight_name for layer in network.layers)}
    planned += [
        LayerSelection(None, *found[:2], None, found[2]) for found in unlisted_weights(network.module, model, listed)
    ]
    chosen = [entry.layer for entry in planned if not entry.reason]
    if not chosen:
        reasons = grouped((entry.name, entry.reason) for entry in planned)
        raise invalid_argument(
            "layers",
            "a choice that selects no layer",
            "at least one convolution or linear layer",
            f"Left dense: {reasons}.",
        )
    _shared_weights(network, chosen)
    return planned


def _check_can_be_masked(name: str, planned: Sequence[LayerSelection]) -> None:
    """Refuse a given mask of a weight that cannot be pruned.

    Raises:
        SnowsError: with the reason.
    """
    entry = next((e for e in planned if name in (e.name, e.layer and e.layer.weight_name)), None)
    reason = "no layer of this network" if entry is None else entry.reason
    if reason and reason not in _LEFT_OUT:
        raise invalid_argument(
            "masks", f"a mask for '{name}'", f"masks of layers that can be pruned ({reason})", "Leave it out."
        )


def choose_masks(
    network: Network,
    planned: Sequence[LayerSelection],
    pattern: Pattern,
    saliency: str | Saliency = "magnitude",
    masks: Mapping[str, Tensor] | nn.Module | None = None,
    seed: int = 0,
) -> tuple[list[LayerSelection], Masks]:
    """Make or read the masks of the selected layers, and say of the others why they stay dense.

    Weights that are zero already stay zero: a pattern takes away, it never gives back.

    Args:
        network: the traced model.
        planned: from :func:`select_layers`.
        pattern: sparsity pattern; ignored when ``masks`` are given.
        saliency: see :func:`snows_core.masks.patterns.masks_for`.
        masks: masks made elsewhere, taken as they are.
        seed: decides between equal scores.

    Returns:
        The plan with reasons for layers that do not fit, and the masks by layer name.

    Raises:
        SnowsError: when the pattern fits no selected layer (with the reason of every layer), or on masks of what
            cannot be pruned.
    """
    selected = {entry.name: entry for entry in planned if not entry.reason}
    weights = {name: network.weight(entry.layer) for name, entry in selected.items()}
    if masks is not None:
        chosen = _given_masks(network, planned, masks)
        reasons = {name: "no zeros in the given masks" for name in selected if name not in chosen}
    else:
        reasons = {name: pattern.misfit(w, selected[name].geometry.groups) for name, w in weights.items()}
        reasons |= {name: "all of its weights are zero already" for name, w in weights.items() if not w.any()}
        fitting = {name: weight for name, weight in weights.items() if not reasons[name]}
        chosen = _without_revival(masks_for(fitting, pattern, saliency, seed) if fitting else {}, fitting)
        reasons |= dict.fromkeys(fitting.keys() - chosen, "the pattern would keep only weights that are zero already")
    plan = [replace(entry, reason=entry.reason or reasons.get(entry.name, "")) for entry in planned]
    if not chosen:
        detail = grouped((entry.name, entry.reason) for entry in plan)
        raise invalid_argument(
            "pattern", str(pattern), "a pattern that fits at least one selected layer", f"({detail})"
        )
    return plan, chosen


def _given_masks(network: Network, planned: Sequence[LayerSelection], masks: Mapping[str, Tensor] | nn.Module) -> Masks:
    every = {e.name: network.weight(e.layer) for e in planned if e.layer is not None and e.layer.weight_name}
    names = {e.layer.weight_name: e.name for e in planned if e.name in every}
    found = foreign_masks(masks, every, names, known=network.state_names)
    for name in found:
        _check_can_be_masked(name, planned)
    selected = {entry.name for entry in planned if not entry.reason}
    return {name: mask for name, mask in found.items() if name in selected}


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
