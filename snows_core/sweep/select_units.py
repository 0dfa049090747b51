"""Which groups of channels, neurons and heads a structured pattern takes from, by the layers that may be pruned.

A group takes part when all layers that compute or read its units may be pruned. Residual streams keep their width: what
is taken out of them is taken from every layer of the network at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snows_core.errors import invalid_argument
from snows_core.masks.patterns import Pattern, Structured, parse_pattern
from snows_core.masks.structured import Slices, Units
from snows_core.network.channels import RESIDUAL
from snows_core.network.graph import Network
from snows_core.network.unit_group import UnitGroup
from snows_core.network.units import unit_groups
from snows_core.settings import PruneSettings
from snows_core.sweep.select import LayerSelection, Reason


def check_units(settings: PruneSettings) -> None:
    """Refuse masks that move weight by weight beside a structured pattern.

    Raises:
        SnowsError: names the argument.
    """
    pattern = parse_pattern(settings.pattern)
    if settings.moving_masks and settings.masks is None and isinstance(pattern, Structured):
        fix = "Units that were taken out stay out: leave moving_masks out."
        raise invalid_argument("moving_masks", f"True with the pattern {pattern}", "a pattern of single weights", fix)


def with_units(
    network: Network, model: nn.Module, example: Tensor, selection: LayerSelection, stages: Sequence[Pattern]
) -> tuple[LayerSelection, tuple[Pattern, ...]]:
    """Bring structured patterns of all stages to the groups of a network; others stay as they are.

    Args:
        network: the traced model.
        model: the model itself.
        example: a few images.
        selection: the layers that may be pruned.
        stages: patterns as they were asked for.

    Returns:
        The selection without layers that are in no group, each with its reason, and the patterns.
    """
    if not isinstance(stages[-1], Structured):
        return selection, tuple(stages)
    found = unit_groups(network, model, example)
    names = {entry.name for entry in selection.prunable}
    chosen = [group for group in found if not _why_whole(network, group, names)]
    units = tuple(_units(network, group) for group in chosen)
    inside = {part.layer for group in units for part in group.slices}
    reasons: dict[str, tuple[Reason, str]] = {}
    for name in names - inside:
        reasons[name] = (Reason.MISFIT, _sentence(network, found, name, names))
    resolved = tuple(stage.on(units) if isinstance(stage, Structured) else stage for stage in stages)
    return selection.without(reasons), resolved


def _layers(network: Network, group: UnitGroup) -> list[str]:
    """Return the names of the layers that hold the units of a group, depthwise ones in between included."""
    tensors = {part.tensor for part in group.parts} | {reading.part.tensor for reading in group.readings}
    tensors |= {layer.weight_name for layer in group.producers}
    return [layer.name for layer in network.layers if layer.weight_name and layer.weight_name in tensors]


def _why_whole(network: Network, group: UnitGroup, prunable: set[str]) -> str:
    """Say why a group keeps all of its units; empty where some may go."""
    if group.bound:
        return group.bound
    if group.is_residual:
        return f"they are part of {RESIDUAL}, which keeps its width"
    dense = [name for name in _layers(network, group) if name not in prunable]
    return f"'{dense[0]}', which holds them too, stays dense" if dense else ""


def _units(network: Network, group: UnitGroup) -> Units:
    """Return the places of a group's units in the weights of its layers."""
    names = {layer.weight_name: layer.name for layer in network.layers if layer.weight_name}
    parts = (*group.parts, *(reading.part for reading in group.readings))
    slices = tuple(Slices(names[part.tensor], part.axis, part.places) for part in parts if part.tensor in names)
    return Units(group.name, group.units, slices)


def _sentence(network: Network, groups: Sequence[UnitGroup], name: str, prunable: set[str]) -> str:
    """Say why no unit can be taken out of a layer, neither of its outputs nor of its inputs."""
    of_rows = [group for group in groups if name in [layer.name for layer in group.producers]]
    of_columns = [group for group in groups if name in [reading.layer.name for reading in group.readings]]
    words = [
        f"its {side} stay ({_why_whole(network, group, prunable)})"
        for side, held in (("outputs", of_rows), ("inputs", of_columns))
        for group in held[:1]
    ]
    return "; ".join(words) or "it is part of no group of channels, neurons or heads"
