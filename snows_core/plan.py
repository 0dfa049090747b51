"""What will be pruned: every layer of a network, selected or left dense with the reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from snows_core.calibration import run_on_example
from snows_core.errors import SnowsError, bad, closest
from snows_core.graph import Layer, Network, Values
from snows_core.layerwise import Geometry, geometry_of, patches
from snows_core.masks import Masks, Pattern, Saliency, foreign_masks, masks_for
from snows_core.operations import Kind, module_of

LayerChoice = str | Iterable[str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class PlannedLayer:
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


class Example(NamedTuple):
    """What a layer read and gave on a few images, and what it gives with its weight set to zero (its bias)."""

    x: Tensor
    y: Tensor
    offset: Tensor | None


def check_trace(network: Network, model: nn.Module, example: Tensor) -> dict[str, Example]:
    """Run model and graph on an example, compare them, and return each layer's input and output.

    Returns:
        Layer name to what it did on the example.

    Raises:
        SnowsError: when the images do not fit the model, or the graph does not compute what the model does.
    """
    expected = run_on_example(model, example)
    values = {network.image: example}
    seen: dict[str, Example] = {}
    by_node = {layer.node: layer for layer in network.layers}
    last_use = network.last_use
    with torch.no_grad():
        for node in network.nodes[1:]:
            network.run((node,), values)
            if node in by_node:
                seen[by_node[node].name] = _observe(network, by_node[node], values)
            for source in node.all_input_nodes:
                if last_use.get(source, -1) <= network.index[node]:
                    values.pop(source, None)
    outputs = fx.map_arg(network.output, lambda node: values[node] if node in values else network.constant(node))
    for want, got in zip(_tensors(expected), _tensors(outputs), strict=True):
        gap = float((want - got).abs().max() / want.abs().max().clamp(min=1e-12))
        if not gap < 1e-2:
            raise SnowsError(
                f"model: its traced graph differs from the model by {gap:.1e} (relative) on the calibration images; "
                "expected equal outputs. Is something random, or decided by the values of the image, in its forward? "
                "Name that module in leaf_modules=."
            )
    return seen


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _observe(network: Network, layer: Layer, values: Values) -> Example:
    source = layer.node.all_input_nodes[0]
    x = values[source] if source in values else network.constant(source)
    offset = None
    if layer.weight_name:
        zero = {layer.weight_name: torch.zeros_like(network.weight(layer))}
        offset = network.run((layer.node,), dict(values), zero)[layer.node]
    return Example(x, values[layer.node], offset)


def _shared_weights(network: Network, chosen: Iterable[Layer]) -> None:
    """Refuse chosen layers whose weight another node of the graph reads too, as a layer or in any other way."""
    users: dict[int, list[fx.Node]] = {}
    for node in network.module.graph.nodes:
        if node.op == "call_module":
            for parameter in module_of(node).parameters():
                users.setdefault(parameter.data_ptr(), []).append(node)
        elif node.op == "get_attr" and isinstance(value := network.constant(node), Tensor):
            users.setdefault(value.data_ptr(), []).extend(node.users)
    for layer in chosen:
        sharing = users.get(network.weight(layer).data_ptr(), [])
        if len(sharing) > 1:
            names = ", ".join(f"'{node.name}'" for node in sharing)
            raise bad(
                "layers", f"'{layer.name}', whose weight is used {len(sharing)} times ({names})",
                "layers with a weight of their own", f"Leave it dense: exclude=['{layer.name}'].",
            )  # fmt: skip


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


def _dense_by_default(network: Network, layer: Layer, output: Tensor) -> str:
    if network.is_first(layer):
        return "first layer (reads the image)"
    flat = output.ndim == 2 or output.shape[2:].numel() == 1
    if flat and network.is_classifier(layer.node):
        return "classifier"
    return ""


def _matches(choice: LayerChoice, argument: str, names: Mapping[str, nn.Module | None]) -> set[str]:
    """Resolve names, globs or a predicate to layer names; a name or glob that matches nothing is an error."""
    if choice is None:
        return set()
    if callable(choice):
        return {name for name, module in names.items() if choice(name, module)}
    if not isinstance(choice, str | Iterable):
        raise bad(argument, type(choice).__name__, "names, globs, or a function of (name, module)")
    found: set[str] = set()
    for pattern in [choice] if isinstance(choice, str) else choice:
        hits = {name for name in names if fnmatch.fnmatchcase(name, pattern) or name == pattern}
        if not hits:
            raise bad(argument, repr(pattern), f"names or globs of this model's {len(names)} layers",
                      closest(pattern, names))  # fmt: skip
        found |= hits
    return found


def plan_layers(
    network: Network,
    model: nn.Module,
    example: Tensor,
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    keep_ends: bool = True,
) -> list[PlannedLayer]:
    """Decide for every layer whether it can and should be pruned, before any mask is made.

    Args:
        network: the traced model.
        model: the model itself, to compare with and to find weights that the graph does not show.
        example: a few images.
        layers: names, globs or a predicate of (name, module); None for all but the first layer and the classifier.
        exclude: likewise, to be left dense.
        keep_ends: without ``layers``, leave the first layer and the classifier dense (not so for given masks).

    Returns:
        One entry per layer in execution order, then those that the graph does not show.

    Raises:
        SnowsError: on unknown names, nothing selected, or a weight used twice among the selected.
    """
    seen = check_trace(network, model, example)
    names = {layer.name: module_of(layer.node) for layer in network.layers}
    wanted, unwanted = _matches(layers, "layers", names), _matches(exclude, "exclude", names)
    planned: list[PlannedLayer] = []
    chosen: list[Layer] = []
    for layer in network.layers:
        weight = network.weight(layer) if layer.weight_name else torch.empty(0)
        geometry, reason = None, ""
        if layers is not None and layer.name not in wanted:
            reason = "not among layers="
        elif layer.name in unwanted:
            reason = "excluded"
        elif not layer.weight_name:
            reason = "its weight is computed, not stored"
        elif layer.kind is Kind.CONVOLUTION and weight.ndim != 4:
            reason = f"{weight.ndim - 2}-dimensional convolution"
        elif network.image not in network.before(layer):
            reason = "does not depend on the image"
        elif layers is None and keep_ends:
            reason = _dense_by_default(network, layer, seen[layer.name].y)
        if not reason:
            geometry = geometry_of(layer.node, weight)
            reason = _not_linear(weight, geometry, seen[layer.name])
        if not reason:
            chosen.append(layer)
        planned.append(PlannedLayer(layer, layer.name, tuple(weight.shape), geometry, reason))
    if not chosen:
        raise bad("layers", "a choice that selects no layer", "at least one convolution or linear layer")
    _shared_weights(network, chosen)
    return planned + _hidden_layers(network, model)


def _hidden_layers(network: Network, model: nn.Module) -> list[PlannedLayer]:
    """List convolution and linear modules whose weight the graph does not multiply by in the open."""
    shown = {layer.weight_name for layer in network.layers} | {f"{layer.name}.weight" for layer in network.layers}
    return [
        PlannedLayer(None, name, tuple(module.weight.shape), None, "used inside an operation that is not traced")
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and f"{name}.weight" not in shown
    ]


def _check_can_be_masked(entry: PlannedLayer) -> None:
    if entry.reason and entry.reason not in ("not among layers=", "excluded"):
        raise bad("masks", f"a mask for '{entry.name}'", f"masks of layers that can be pruned ({entry.reason})",
                  "Leave it out.")  # fmt: skip


def choose_masks(
    network: Network,
    planned: Sequence[PlannedLayer],
    pattern: Pattern,
    saliency: str | Saliency = "magnitude",
    masks: Mapping[str, Tensor] | nn.Module | None = None,
) -> tuple[list[PlannedLayer], Masks]:
    """Make or read the masks of the selected layers, and say of the others why they stay dense.

    Args:
        network: the traced model.
        planned: from :func:`plan_layers`.
        pattern: sparsity pattern; ignored when ``masks`` are given.
        saliency: see :func:`snows_core.masks.masks_for`.
        masks: masks made elsewhere, taken as they are.

    Returns:
        The plan with reasons for layers that do not fit, and the masks by layer name.
    """
    selected = {entry.name: entry for entry in planned if not entry.reason}
    weights = {name: network.weight(entry.layer) for name, entry in selected.items()}
    reasons: dict[str, str] = {}
    if masks is not None:
        every = {e.name: network.weight(e.layer) for e in planned if e.layer is not None and e.layer.weight_name}
        found = foreign_masks(masks, every, {e.layer.weight_name: e.name for e in planned if e.layer is not None})
        for name in found:
            _check_can_be_masked(next(e for e in planned if e.name == name))
        chosen = {name: mask for name, mask in found.items() if name in selected}
        reasons = {name: "no zeros in the given masks" for name in selected if name not in chosen}
    else:
        reasons = {
            name: reason
            for name, weight in weights.items()
            if (reason := pattern.misfit(weight, selected[name].geometry.groups))
        }
        chosen = masks_for({name: w for name, w in weights.items() if name not in reasons}, pattern, saliency)
    if not chosen:
        detail = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        raise bad("pattern", str(pattern), "a pattern that fits at least one selected layer", f"({detail})")
    plan = [PlannedLayer(e.layer, e.name, e.shape, e.geometry, e.reason or reasons.get(e.name, "")) for e in planned]
    return plan, chosen
